"""Lookup of a name a user typed."""

import difflib


def look_up(function: str, table: dict, name, *, argument: str = "name"):
    """Return table[name]. Raises ValueError that lists the names there are and the nearest one."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{function}: {argument} must be one of {', '.join(sorted(table))}, got {name!r}{hint}")
