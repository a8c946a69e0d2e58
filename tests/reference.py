"""Naive versions, written from the paper's text, to compare the package with."""


def kept(gates, rule, threshold, operations, inputs=2):
    """The three discretisation rules: [(operation, node, source)], by picking one maximum after the other."""
    rows, found, node = list(gates), [], inputs
    while rows:
        sources, rows = rows[:node], rows[node:]
        if rule == "edge":
            for source, row in enumerate(sources):
                left, picked = list(range(len(row))), []
                while left and len(picked) < 2:
                    best = left[0]
                    for op in left:
                        if row[op] >= row[best]:
                            best = op
                    left.remove(best)
                    picked.insert(0, best)
                found += [(operations[op], node, source) for op in picked if not row[op] < threshold]
        else:
            left, picked = list(range(len(sources))), 0
            while left and picked < 2:
                best = (left[0], 0)
                for source in left:
                    for op, gate in enumerate(sources[source]):
                        if gate > sources[best[0]][best[1]]:
                            best = (source, op)
                left.remove(best[0])
                picked += 1
                if rule == "darts" or not sources[best[0]][best[1]] < threshold:
                    found.append((operations[best[1]], node, best[0]))
        node += 1
    return found


def pruned(edges):
    """The edges with a path back to an input, by recursion: [(operation, node, source)]."""

    def fed(node):
        return node < 2 or any(fed(source) for _, target, source in edges if target == node)

    return [edge for edge in edges if fed(edge[2])]
