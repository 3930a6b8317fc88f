"""Random graphs, cancels and queues on a real server, in small; by hand there is more (tools/torture graphs)."""
import pytest
from torture.graphs import HOSTS, OURS, STOCK, Graphs, Torture, growth_of


@pytest.fixture()
def torture(client, object_info, learned, picture):
    return Torture(client.object_info(), seed=3)  # asked anew: there are styles now


def test_nothing_breaks_it(client, torture):
    torture.check_stock(client)
    while torture.report.counts["queued"] < 6:
        torture.round(client)
    torture.check_stock(client)
    assert not torture.report.problems, "\n".join(torture.report.problems)
    assert torture.report.counts["completed"] >= 2, torture.report


def test_a_failure_of_the_packs_own_would_show(torture):
    """The same entry from a node of the pack, as refusal and as crash, and from a node of the host."""
    def entry(node: str, kind: str) -> dict:
        error = {"node_type": node, "exception_type": kind, "exception_message": "x", "traceback": []}
        return {"status": {"completed": False, "messages": [["execution_error", error]]}}

    torture._look_at(entry("InST_Sample", "ValueError"), STOCK)
    torture._look_at(entry("KSampler", "RuntimeError"), STOCK)
    assert not torture.report.problems
    torture._look_at(entry("InST_Sample", "RuntimeError"), STOCK)
    torture._look_at({"status": {"completed": False, "messages": []}}, STOCK)
    assert len(torture.report.problems) == 2


def test_graphs_are_the_same_for_a_seed_and_go_round_all_nodes(object_info, learned, picture):
    first, second = Graphs(object_info, 5), Graphs(object_info, 5)
    used = set()
    for _ in range(150):
        graph = first.next()
        assert graph == second.next()
        used |= {node["class_type"] for node in graph.values()}
    assert len(used & set(HOSTS.split())) > 60 and set(OURS) <= used


def test_growth_is_seen_behind_the_warming_up():
    assert growth_of([10, 20, 900, 100, 95, 500, 500, 95, 500]) == 0
    assert growth_of([100, 200, 300, 400, 500, 600]) == 200
    assert growth_of([100, 200]) == 0
