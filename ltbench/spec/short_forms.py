"""Short forms of a spec written out: a lone value is a list of one, a method's name a mapping, a factor its resampling."""

from __future__ import annotations

from ltbench.spec.starts import normalised
from ltbench.spec.yaml_io import Node


def normalise(node: Node) -> Node:
    """A copy in which every short form is written out: a lone value is a list of one, a method's name a mapping."""
    values = dict(node.value)
    if (grid := values.get("grid")) is not None and isinstance(grid.value, dict):
        axes = {axis: _axis(axis, axis_node) for axis, axis_node in grid.value.items()}
        values["grid"] = Node(axes, grid.where, grid.keys)
    if (
        (train := values.get("train")) is not None
        and isinstance(train.value, dict)
        and "milestones" in train.value
    ):
        train_values = {**train.value, "milestones": listed(train.value["milestones"])}
        values["train"] = Node(train_values, train.where, train.keys)
    if "evaluate" in values:
        entries = listed(values["evaluate"])
        values["evaluate"] = Node([_evaluate(entry) for entry in entries.value], entries.where)
    if "init" in values:
        values["init"] = normalised(values["init"])
    if "exclude" in values:
        values["exclude"] = listed(values["exclude"])
    return Node(values, node.where, node.keys)


def listed(node: Node) -> Node:
    return node if isinstance(node.value, list) else Node([node], node.where)


def _axis(axis: str, node: Node) -> Node:
    items = listed(node).value
    if axis == "method":
        items = [_named(item) if isinstance(item.value, str) else _started(item) for item in items]
    if axis == "init":
        items = [normalised(item) for item in items]
    if axis == "resample":
        items = [_resample(item) for item in items]
    return Node(items, node.where)


def _resample(item: Node) -> Node:
    if item.value is None or item.value == "none":
        return Node(None, item.where)
    return (
        item if isinstance(item.value, dict) else Node({"factor": item}, item.where, {"factor": item.where})
    )


def _started(item: Node) -> Node:
    """A method's row with its own start."""
    if not isinstance(item.value, dict) or "init" not in item.value:
        return item
    return Node({**item.value, "init": normalised(item.value["init"])}, item.where, item.keys)


def _named(item: Node) -> Node:
    return Node({"name": item}, item.where, {"name": item.where})


def _evaluate(entry: Node) -> Node:
    if not isinstance(entry.value, dict):
        return entry
    values = dict(entry.value)
    if "guidance" in values:
        values["guidance"] = listed(values["guidance"])
    if (schedule := values.get("schedule")) is not None and isinstance(schedule.value, str):
        values["schedule"] = _named(schedule)
    shown = values.get("illustrate")
    if shown is not None and isinstance(shown.value, str | int | list):
        shown = Node({"classes": shown}, shown.where, {"classes": shown.where})
    if shown is not None and isinstance(shown.value, dict):
        values["illustrate"] = _illustrated(shown)
    return Node(values, entry.where, entry.keys)


def _illustrated(node: Node) -> Node:
    """A lone class is a list of one; a group stays a word."""
    classes = node.value.get("classes")
    if classes is None or classes.value in ("head", "body", "tail"):
        return node
    return Node({**node.value, "classes": listed(classes)}, node.where, node.keys)
