"""Read a kernel's machine code: the way of the many through it, counted.

The fast path is what a thread executes of a full, aligned piece of a tensor: the round of a loop and what stands around
it, or, where a kernel takes its piece in one go, all from the first instruction to the last. Of all ways it is the one
that moves most in accesses of 16 bytes, of those one that calls no subroutine, because these are for rare values such
as subnormal quotients, and of those the shortest.
"""

import copy
import functools
import operator
import re
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass

import networkx

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([\w.]+)([^;]*);")
GLOBAL = re.compile(r"(LDG|STG)\.E\S*?(?:\.(128|64|U16|S16|U8|S8))?(?:\.\D\w*)*$")
BYTES = {"128": 16, "64": 8, None: 4, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
ENDS = ("EXIT", "RET", "BRX", "JMX", "KILL")


@dataclass(frozen=True)
class Instruction:
    address: int
    guard: str  # its predicate, or nothing
    name: str
    operands: str

    @functools.cached_property
    def access(self) -> tuple[str, int] | None:
        """LDG or STG, and bytes; None for what others wait for, as last blocks do: that is no stream."""
        match = GLOBAL.match(self.name)
        return (match[1], BYTES[match[2]]) if match and ".STRONG" not in self.name else None

    @property
    def target(self) -> int | None:
        return int(self.operands.split("0x")[-1].strip(), 16) if self.name.startswith("BRA") else None

    @property
    def goes_on(self) -> bool:
        """Whether the next instruction may follow."""
        if self.guard or self.name.startswith("BRA.DIV"):
            return True
        if self.name.startswith("BRA"):
            return "," in self.operands  # a second predicate
        return not self.name.startswith(ENDS)

    def registers(self, places: slice) -> set[int]:
        """Return the registers that operands name."""
        return {int(n) for operand in self.operands.split(",")[places] for n in re.findall(r"\bR(\d+)", operand)}


def instructions(text: str) -> list[Instruction]:
    return [Instruction(int(address, 16), guard, name, operands)
            for address, guard, name, operands in LINE.findall(text)]


@dataclass(frozen=True)
class Way:
    """Instructions from somewhere to somewhere. A better one moves more in wide accesses, then calls less, because what
    it calls is not in it; then the shorter one is better, or the longer one."""
    wide: int = 0
    calls: int = 0
    steps: tuple[Instruction, ...] = ()

    def __add__(self, other: "Way") -> "Way":
        return Way(self.wide + other.wide, self.calls + other.calls, self.steps + other.steps)

    def __mul__(self, times: int) -> "Way":
        return Way(self.wide * times, self.calls * times, self.steps * times)

    def rank(self, longest: bool) -> tuple[int, int, int]:
        return -self.wide, self.calls, -len(self.steps) if longest else len(self.steps)


def is_loop(edges: networkx.DiGraph, group: Set[int]) -> bool:
    return len(group) > 1 or edges.has_edge(min(group), min(group))


class Graph:
    """Basic blocks by the address of their first instruction, and which may follow which.

    levels: rounds of loops over bit-widths, which move something and do not read x; other loops are counted once.
    """

    def __init__(self, code: list[Instruction], levels: int):
        self.entry, self.levels, self.longest, self.blocks, follows = code[0].address, levels, False, {}, []
        targets, begins = {i.target for i in code}, True
        for i, other in zip(code, [*code[1:], None], strict=True):
            if begins or i.address in targets:
                self.blocks[start := i.address] = []
            self.blocks[start].append(i)
            begins = i.target is not None or i.name.startswith(ENDS)
            if other and i.goes_on and (begins or other.address in targets):
                follows.append((start, other.address))
            follows += [(start, i.target)] if i.target is not None else []
        self.edges = networkx.DiGraph(follows)
        self.edges.add_nodes_from(self.blocks)
        self.ways = {start: Way(sum(i.access[1] for i in block if i.access and i.access[1] == 16),
                                sum(i.name.startswith("CALL") for i in block), tuple(block))
                     for start, block in self.blocks.items()}
        self.exits = {start for start, block in self.blocks.items() if block[-1].name == "EXIT"}
        stream = "LDG", max((i.access[1] for i in code if i.access and i.access[0] == "LDG"), default=0)
        self.reads = {start for start, block in self.blocks.items() if any(i.access == stream for i in block)}

    def reading_loops(self, edges: networkx.DiGraph) -> Iterator[frozenset[int]]:
        """Yield the loops that read x, and those inside them."""
        for loop in networkx.strongly_connected_components(edges):
            if loop & self.reads and is_loop(edges, loop):
                yield frozenset(loop)
                yield from self.reading_loops(self.inside(loop))

    def inside(self, loop: Set[int]) -> networkx.DiGraph:
        """Return what a round of a loop may do: its edges but those back to its header."""
        edges = networkx.DiGraph(self.edges.subgraph(loop))
        edges.remove_edges_from(list(edges.in_edges(min(loop))))
        return edges

    def round(self, loop: Set[int], through: Set[int] = frozenset()) -> Way | None:
        """Return the best way round a loop, and round the loop `through` inside it."""
        return self.best(self.inside(loop), min(loop), set(self.edges.predecessors(min(loop))) & loop, through)

    def straight(self, through: Set[int] = frozenset()) -> Way | None:
        """Return the best way through the kernel, with one round of the loop `through`."""
        return self.best(self.edges, self.entry, self.exits, through)

    def best(self, edges: networkx.DiGraph, start: int, ends: Set[int], through: Set[int]) -> Way | None:
        """Return the best way from `start` to one of `ends`. Of loops that read x it enters `through` alone."""
        order, rank = networkx.condensation(edges), operator.methodcaller("rank", self.longest)
        best = {}
        for place in reversed(list(networkx.topological_sort(order))):
            group = order.nodes[place]["members"]
            own = self.loop(group, through) if is_loop(edges, group) else self.ways[min(group)]
            rest = [Way()] if group & ends else []
            rest += [best[at] for at in order.successors(place) if best[at]]
            best[place] = min((own + way for way in rest), key=rank, default=None) if own else None
        return best[order.graph["mapping"][start]]

    def loop(self, group: Set[int], through: Set[int]) -> Way | None:
        """Return what a loop inside a way adds to it; None where no way leads."""
        if group & self.reads and not group & through:
            return None
        way = self.round(group, through if through < group else frozenset())
        times = self.levels if way and way.wide and not group & self.reads else 1
        return way and way * times


@dataclass(frozen=True)
class FastPath:
    """A way, and how many instructions stand around it where it is the round of a loop: 0 if it is all."""
    way: Way
    around: int


def fast_path(text: str, levels: int = 1, longest: bool = False) -> FastPath:
    """Return the fast path of a kernel.

    Args:
        text: the kernel, as cuobjdump prints it.
        levels: bit-widths.
        longest: of loops, and of ways round one, that move as much the longest is meant, not the shortest.
    """
    shortest = Graph(instructions(text), levels)
    graph = copy.copy(shortest)
    graph.longest = longest
    straight = shortest.straight()
    rounds = [(loop, way) for loop in graph.reading_loops(graph.edges) if (way := graph.round(loop))]
    most = max([way.wide for _, way in rounds], default=-1)
    if straight and straight.wide >= most:
        return FastPath(straight, 0)
    loop, way = min(rounds, key=lambda pair: pair[1].rank(longest))
    return FastPath(way, len(shortest.straight(loop).steps) - len(shortest.round(loop).steps))


def accesses(way: Way) -> Counter:
    """{(LDG or STG, bytes): how many} of a way."""
    return Counter(i.access for i in way.steps if i.access)


def loaded_first(way: Way) -> int:
    """Return the bytes that a thread has asked for before it needs the first of them: its widest loads count."""
    sizes = [size for op, size in accesses(way) if op == "LDG"]
    asked, pending = 0, set()
    for i in way.steps:
        if pending & i.registers(slice(0 if i.name.startswith(("ST", "RED")) else 1, None)):
            break
        if sizes and i.access == ("LDG", max(sizes)):
            first = min(i.registers(slice(0, 1)))
            pending |= set(range(first, first + max(1, i.access[1] // 4)))
            asked += i.access[1]
    return asked
