"""Whether the nodes of a run can use its folder or URL."""

import pytest
import ray

from orchestrator.cluster.shared_storage import check_shared_folders, inspect_node
from orchestrator.storage.remote import RemoteStorage


@pytest.mark.usefixtures("s3")
def test_a_node_that_cannot_use_the_url_says_why(tmp_path):
    remote, folder = RemoteStorage("s3://laser/runs", "shared"), str(tmp_path / "shared")
    remote.write(".mark", b"")
    assert inspect_node(folder, "s3://laser/runs", None, ".mark")[1] == ""
    assert (
        inspect_node(folder, f"file://{tmp_path}", None, ".mark")[1]
        == f"file://{tmp_path}/shared is another place there"
    )
    assert remote.files() == [".mark"]
    assert "Name s3://, gs:// or file:///" in inspect_node(folder, "nothing://here", None, ".mark")[1]


def test_every_learner_s_node_is_asked_for_the_url_also_the_driver_s(ray_cluster, tmp_path):
    here = {ray.get_runtime_context().get_node_id(): "learning, rollout"}
    check_shared_folders(tmp_path / "run", "name/on-the-hub", here, f"file://{tmp_path}/remote")
    assert list((tmp_path / "remote").rglob("*")) == [tmp_path / "remote" / "run"]
    assert not (tmp_path / "run").exists()
