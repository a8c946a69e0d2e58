"""Where the edges of a cell run: every one in a lane of its own, straight from its source's bar to its node's.

Columns go from left to right: the cell's two inputs, one above the other, in column 0, node n in column n - 1, the
output behind the last. Lanes go from top to bottom. Edges that do not lie side by side may share a lane.
"""

from dataclasses import dataclass

OUTPUT = -1


@dataclass(frozen=True)
class Link:
    """What runs from ``source`` to ``node``: an operation, or none on the way to the OUTPUT."""

    source: int
    node: int
    operation: str | None = None
    dropped: bool = False


def column(state: int, last: int) -> int:
    """The column of an input, a node, or the OUTPUT; ``last``: the number of the last node."""
    return last if state == OUTPUT else max(0, state - 1)


def laid(links: list[Link], last: int) -> list[int]:
    """A lane for every link, so that short bars reach all that ends or begins at a state, and few links pass behind.

    Deterministic: from a first order links are moved, one and two at a time, as long as that makes the cost less.
    """
    spans = [(column(link.source, last), column(link.node, last)) for link in links]
    lanes = _first(links, spans)
    count = 1 + max(lanes, default=0)
    best = _cost(links, spans, lanes)
    improved = True
    while improved:
        improved = False
        for one in range(len(links)):
            for change in _changes(lanes, one, count):
                if not _free(spans, change):
                    continue
                cost = _cost(links, spans, change)
                if cost < best:
                    lanes, best, improved = change, cost, True
    return _without_empty(lanes)


def _changes(lanes, one, count):
    """The lanes with link ``one`` moved to each other lane, and exchanged with each later link."""
    for lane in range(count):
        if lane != lanes[one]:
            yield [lane if number == one else old for number, old in enumerate(lanes)]
    for other in range(one + 1, len(lanes)):
        if lanes[other] != lanes[one]:
            change = list(lanes)
            change[one], change[other] = lanes[other], lanes[one]
            yield change


def _first(links, spans) -> list[int]:
    """A first order: what leaves input 0 above, input 1 below, the longest outside; in between what leaves nodes."""

    def key(number):
        source, length = links[number].source, spans[number][1] - spans[number][0]
        return ({0: 0, 1: 2}.get(source, 1), length if source == 1 else -length, number)

    order = sorted(range(len(links)), key=key)
    lanes = [0] * len(links)
    taken: list[list[tuple[int, int]]] = []
    for number in order:
        first, last = spans[number]
        of_input = links[number].source < 2
        free = (lane for lane, others in enumerate(taken) if all(last <= a or b <= first for a, b in others))
        lane = len(taken) if of_input else next(free, len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append(spans[number])
        lanes[number] = lane
    return lanes


def _free(spans, lanes) -> bool:
    """Whether no two links lie on each other."""
    found: dict[int, list] = {}
    for span, lane in zip(spans, lanes, strict=True):
        if any(span[0] < b and a < span[1] for a, b in found.get(lane, ())):
            return False
        found.setdefault(lane, []).append(span)
    return True


def bars(links: list[Link], lanes: list[int]) -> dict[int, tuple[int, int]]:
    """{state: the first and the last lane that its bar reaches}."""
    found: dict[int, tuple[int, int]] = {}
    for link, lane in zip(links, lanes, strict=True):
        for state in (link.source, link.node):
            low, high = found.get(state, (lane, lane))
            found[state] = min(low, lane), max(high, lane)
    return found


def _cost(links, spans, lanes) -> int:
    """Lanes under bars, thrice what passes behind one, and much where the inputs' bars would meet."""
    reached = bars(links, lanes)
    last = max(b for _, b in spans) if spans else 0
    cost = 0
    for state, (low, high) in reached.items():
        place = column(state, last)
        cost += high - low
        cost += 3 * sum(a < place < b and low <= lane <= high for (a, b), lane in zip(spans, lanes, strict=True))
    if 0 in reached and 1 in reached:
        cost += 100 * max(0, reached[0][1] - reached[1][0] + 1)
    return cost


def _without_empty(lanes: list[int]) -> list[int]:
    order = {lane: number for number, lane in enumerate(sorted(set(lanes)))}
    return [order[lane] for lane in lanes]
