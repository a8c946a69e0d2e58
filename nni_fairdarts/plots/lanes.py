"""Where the edges of a cell run: each in a lane, straight from its source's bar to its node's.

Columns go from left to right: the cell's two inputs, one above the other, in the first, then a node in each, then the
output. Lanes go from top to bottom. Edges that do not lie side by side may share a lane.
"""

from dataclasses import dataclass

OUTPUT = -1
PASSING, CROSSED = 3, 100  # what a link behind a bar, and a lane that both inputs reach for, cost in lanes
MOST = 64  # links that are moved; more stay in their first order, for that takes long


@dataclass(frozen=True)
class Link:
    """What runs from ``source`` to ``node``: an operation, or none on the way to the OUTPUT."""

    source: int
    node: int
    operation: str | None = None
    dropped: bool = False


def laid(links: list[Link], columns: dict[int, int]) -> list[int]:
    """A lane for every link, from 0, such that bars are short and few links pass behind one.

    ``columns``: of every input, node and the OUTPUT. Deterministic: from a first order on, links are moved to another
    lane, or exchanged, as long as that makes bars shorter.
    """
    spans = [(columns[link.source], columns[link.node]) for link in links]
    lanes = _first(links, spans)
    count = 1 + max(lanes, default=0)
    best = _cost(links, columns, lanes)
    improved = len(links) <= MOST
    while improved:
        improved = False
        for one in range(len(links)):
            for change in _changes(lanes, one, count):
                if _free(spans, change) and (cost := _cost(links, columns, change)) < best:
                    lanes, best, improved = change, cost, True
    order = {lane: number for number, lane in enumerate(sorted(set(lanes)))}
    return [order[lane] for lane in lanes]


def bars(links: list[Link], lanes: list[int]) -> dict[int, tuple[int, int]]:
    """{state: the first and the last lane that its bar reaches}; nothing of states that no link touches."""
    found: dict[int, tuple[int, int]] = {}
    for link, lane in zip(links, lanes, strict=True):
        for state in (link.source, link.node):
            low, high = found.get(state, (lane, lane))
            found[state] = min(low, lane), max(high, lane)
    return found


def passing(state: int, links: list[Link], lanes: list[int], columns: dict[int, int]) -> list[int]:
    """The lanes of links that pass the column of ``state``."""
    return [
        lane
        for link, lane in zip(links, lanes, strict=True)
        if columns[link.source] < columns[state] < columns[link.node]
    ]


def _first(links, spans) -> list[int]:
    """A first order: what leaves input 0 above, input 1 below, the longest outside; in between what leaves nodes."""

    def key(number):
        source, length = links[number].source, spans[number][1] - spans[number][0]
        return {0: 0, 1: 2}.get(source, 1), length if source == 1 else -length, number

    lanes = [0] * len(links)
    taken: list[list[tuple[int, int]]] = []
    for number in sorted(range(len(links)), key=key):
        fits = (lane for lane, others in enumerate(taken) if _beside(spans[number], others))
        lane = len(taken) if links[number].source < 2 else next(fits, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append(spans[number])
        lanes[number] = lane
    return lanes


def _beside(span, others) -> bool:
    return all(span[1] <= first or last <= span[0] for first, last in others)


def _changes(lanes, one, count):
    """The lanes with link ``one`` in each other lane, and exchanged with each later link."""
    for lane in range(count):
        if lane != lanes[one]:
            yield [lane if number == one else old for number, old in enumerate(lanes)]
    for other in range(one + 1, len(lanes)):
        if lanes[other] != lanes[one]:
            change = list(lanes)
            change[one], change[other] = lanes[other], lanes[one]
            yield change


def _free(spans, lanes) -> bool:
    """Whether no two links lie on each other."""
    found: dict[int, list] = {}
    for span, lane in zip(spans, lanes, strict=True):
        if not _beside(span, found.setdefault(lane, [])):
            return False
        found[lane].append(span)
    return True


def _cost(links, columns, lanes) -> int:
    reached = bars(links, lanes)
    cost = 0
    for state, (low, high) in reached.items():
        behind = sum(low <= lane <= high for lane in passing(state, links, lanes, columns))
        cost += high - low + PASSING * behind
    if 0 in reached and 1 in reached:
        cost += CROSSED * max(0, reached[0][1] - reached[1][0] + 1)
    return cost
