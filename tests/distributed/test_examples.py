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


def test_kuberay_has_the_fields_that_it_asks_for(examples: list[Any]) -> None:
    found = examples[1]
    assert (found["apiVersion"], found["kind"]) == ("ray.io/v1", "RayCluster")
    head, *workers = found["spec"]["headGroupSpec"], *found["spec"]["workerGroupSpecs"]
    for group in (head, *workers):
        assert {"rayStartParams", "template"} <= group.keys()
        assert group["template"]["spec"]["containers"][0].keys() >= {"name", "image", "resources"}
    assert workers and all({"groupName", "replicas", "minReplicas", "maxReplicas"} <= group.keys() for group in workers)
