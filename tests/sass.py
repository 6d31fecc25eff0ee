"""Read a kernel's machine code: the way of the many through it, counted.

The fast path is what a thread executes of a full, aligned piece of a tensor: the round of a loop, or, where a kernel
takes its piece in one go, all from the first instruction to the last. Of all ways through it is the one that moves most
in accesses of 16 bytes, and of those the one that calls no subroutine, which are for rare values such as subnormal
quotients, and the shortest.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator
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
    """Instructions from somewhere to somewhere. A better one moves more in wide accesses, then calls less, whose
    instructions are not here, then is shorter."""
    wide: int
    steps: tuple[Instruction, ...]

    def __add__(self, other: "Way") -> "Way":
        return Way(self.wide + other.wide, self.steps + other.steps)

    @property
    def rank(self) -> tuple[int, int, int]:
        return -self.wide, self.calls, len(self.steps)

    @functools.cached_property
    def calls(self) -> int:
        return sum(i.name.startswith("CALL") for i in self.steps)


class Graph:
    """Basic blocks by the address of their first instruction, and which may follow which."""

    def __init__(self, code: list[Instruction]):
        self.entry, self.blocks, follows = code[0].address, {}, []
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
        self.exits = {start for start, block in self.blocks.items() if block[-1].name == "EXIT"}

    def way(self, start: int) -> Way:
        steps = tuple(self.blocks[start])
        return Way(sum(i.access[1] for i in steps if i.access and i.access[1] == 16), steps)

    def loops(self, edges: networkx.DiGraph) -> Iterator[set[int]]:
        """Yield every loop, and those inside it."""
        for loop in networkx.strongly_connected_components(edges):
            header = min(loop)
            if len(loop) > 1 or edges.has_edge(header, header):
                yield loop
                yield from self.loops(self.inside(loop))

    def inside(self, loop: set[int]) -> networkx.DiGraph:
        """Return what a round of a loop may do: its edges but those back to its header."""
        edges = networkx.DiGraph(self.edges.subgraph(loop))
        edges.remove_edges_from(list(edges.in_edges(min(loop))))
        return edges

    def round(self, loop: set[int], rounds: int) -> Way:
        """Return the best way round a loop."""
        return self.best(self.inside(loop), min(loop), set(self.edges.predecessors(min(loop))) & loop, rounds)

    def best(self, edges: networkx.DiGraph, start: int, ends: set[int], rounds: int) -> Way | None:
        """Return the best way from `start` to one of `ends`. Loops inside take `rounds` rounds where they move
        anything, else one."""
        order = networkx.condensation(edges)
        best = {}
        for place in reversed(list(networkx.topological_sort(order))):
            group = order.nodes[place]["members"]
            ways = [Way(0, ())] if group & ends else []
            ways += [best[at] for at in order.successors(place) if best[at]]
            own = self.way(min(group))
            if len(group) > 1 or edges.has_edge(min(group), min(group)):
                own = self.round(group, rounds)
                own = Way(own.wide * rounds, own.steps * rounds) if own.wide else own
            best[place] = min((own + way for way in ways), key=lambda way: way.rank, default=None)
        return best[order.graph["mapping"][start]]


def fast_path(text: str, rounds: int) -> Way:
    """Return the fast path of a kernel whose loops inside it, over bit-widths, take `rounds` rounds."""
    code = instructions(text)
    stream = "LDG", max((i.access[1] for i in code if i.access and i.access[0] == "LDG"), default=0)
    graph = Graph(code)
    reading = {node for node, block in graph.blocks.items() if any(i.access == stream for i in block)}
    loops = [loop for loop in graph.loops(graph.edges) if loop & reading]
    outside = graph.edges.subgraph(set(graph.blocks).difference(*loops))
    straight = graph.best(outside, graph.entry, graph.exits & set(outside), rounds) if graph.entry in outside else None
    rounds_of = [(loop, graph.round(loop, rounds)) for loop in loops]
    most = max([way.wide for _, way in rounds_of], default=-1)
    if straight and straight.wide >= most:
        return straight
    return shortest(graph.edges, [(loop, way) for loop, way in rounds_of if way.wide == most])


def shortest(edges: networkx.DiGraph, ways: list[tuple[set[int], Way]]) -> Way:
    """Return the shortest of ways round loops; where one loop follows another, only the longer of the two counts."""
    def hidden(loop, way):
        return any(len(other.steps) > len(way.steps) and not loop & nodes and
                   (networkx.has_path(edges, min(loop), min(nodes)) or networkx.has_path(edges, min(nodes), min(loop)))
                   for nodes, other in ways)
    return min((way for loop, way in ways if not hidden(loop, way)), key=lambda way: len(way.steps))


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
