"""A mirror as TensorBoard's event files: one folder per run, one file in it, equal bytes for equal records."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.errors import EnvironmentProblem
from ltbench.trackers import Mirror

FILE = "events.out.tfevents.0000000000.ltbench"


def folder_of(mirror: Mirror) -> str:
    """A folder's name that no label can lead astray; the cell makes it one's own."""
    return f"{re.sub(r'[^A-Za-z0-9._=-]+', '_', mirror.name).strip('._') or 'run'}-{mirror.cell[:8]}-{mirror.run[:6]}"


def write(mirror: Mirror, root: Path) -> bool:
    """Write the event file of a run below `root`; False where it is there already, byte for byte.

    Raises EnvironmentProblem without the package `tensorboard`.
    """
    path = root / folder_of(mirror) / FILE
    data = event_file(mirror)
    if path.is_file() and path.read_bytes() == data:
        return False
    files.make_directory(path.parent)
    files.replace(path, data)
    return True


def event_file(mirror: Mirror) -> bytes:
    """The whole event file. Its times are those of the run's last record, so that writing it again changes nothing."""
    proto, writer_of = _package()
    target = io.BytesIO()
    writer = writer_of(target)

    def put(step: int, **value: Any) -> None:
        summary = proto["Summary"](value=[proto["Summary"].Value(**value)])
        event = proto["Event"](wall_time=mirror.finished, step=step, summary=summary)
        writer.write(event.SerializeToString(deterministic=True))

    writer.write(proto["Event"](wall_time=mirror.finished, file_version="brain.Event:2").SerializeToString())
    text = "\n".join(
        f"    {line}" for line in json.dumps(mirror.settings, indent=1, sort_keys=True).split("\n")
    )
    put(
        0,
        tag="settings",
        metadata=proto["SummaryMetadata"](
            plugin_data=proto["SummaryMetadata"].PluginData(plugin_name="text")
        ),
        tensor=proto["TensorProto"](dtype=7, string_val=[text.encode()]),  # 7: DT_STRING
    )
    for each in mirror.scalars:
        put(each.step, tag=each.tag, simple_value=each.value)
    for each in mirror.images:
        picture = proto["Summary"].Image(
            height=each.height, width=each.width, colorspace=3, encoded_image_string=each.png
        )
        put(each.step, tag=each.tag, image=picture)
    return target.getvalue()


def _package() -> tuple[dict[str, Any], Any]:
    try:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter
    except ImportError as error:
        raise EnvironmentProblem(
            f"tensorboard cannot be imported: {error}", "pip install 'ltbench[trackers]', or only tensorboard"
        ) from None
    named = (Event, Summary, SummaryMetadata, TensorProto)
    return {each.__name__: each for each in named}, RecordWriter
