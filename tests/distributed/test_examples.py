"""The clusters that docs/scaling.md shows are what their tools take."""

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="the extra `ray` is not installed")
pytest.importorskip("ray", reason="the extra `ray` is not installed")
PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def examples() -> list[Any]:
    return [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)]


def test_ray_up_takes_its_file(examples: list[Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    whole = prepare_config(examples[0])
    validate_config(whole)
    assert whole["available_node_types"]["local.cluster.node"]["max_workers"] == 2
    examples[0]["head_node_typo"] = 1
    with pytest.raises(Exception, match="head_node_typo"):
        validate_config(prepare_config(examples[0]))


def test_kuberay_takes_its_file(examples: list[Any]) -> None:
    """Ray's autoscaler, which KubeRay's operator starts in the head, reads it; fields that nobody knows are none of its
    concern."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr as read

    found = examples[1]
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayCluster")
    config = read({**found, "metadata": {**found["metadata"], "namespace": "default"}})
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0, "memory": 16 * 2**30}
    assert types["workers"]["resources"] == {"CPU": 8, "memory": 32 * 2**30}
    assert (types["workers"]["min_workers"], types["workers"]["max_workers"]) == (2, 8)
    assert found["spec"].keys() == {"rayVersion", "enableInTreeAutoscaling", "headGroupSpec", "workerGroupSpecs"}
    (group,) = found["spec"]["workerGroupSpecs"]
    assert group.keys() == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    for each in (found["spec"]["headGroupSpec"], group):
        (container,), volumes = each["template"]["spec"]["containers"], each["template"]["spec"]["volumes"]
        assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"] for volume in volumes]
