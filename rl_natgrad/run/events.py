"""TensorBoard event files, written synchronously from TensorBoard's own message types.

torch.utils.tensorboard imports most of TensorBoard and writes from a thread, where a full disk surfaces late and
elsewhere. tensorboard's RecordWriter, which is `frame`, would bring half of that along: a training starts 39 ms
later, compare 65 ms; with its checksum alone 36 and 69 ms (medians of 11 processes; the messages take 39 ms).
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from rl_natgrad.run.files import naming


class EventFile:
    """One new event file in folder `path`. Each call writes one event and flushes it."""

    def __init__(
        self, path: Path, *, purge_step: int | None = None, describe: Callable[[str], str] = lambda tag: ""
    ):
        """purge_step: readers forget what earlier files of this folder say of this step and later ones.
        describe: what a tag means, written with its first point."""
        self._describe, self._described = describe, set[str]()
        for number in itertools.count(len(list(path.glob("events.out.tfevents.*")))):
            # Readers take a folder's files in order of their names; the number orders those of one second.
            moment = f"{int(time.time()):010d}.{number:03d}"
            self.path = path / f"events.out.tfevents.{moment}.{socket.gethostname()}.{os.getpid()}"
            try:
                self._file = open(self.path, "xb")  # noqa: SIM115 (kept open for the run)
                break
            except FileExistsError:
                continue
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        if purge_step is not None or number == 0:  # some readers purge only at the second START they meet
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=time.time(), step=purge_step or 0, session_log=start))

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float | None = None) -> None:
        """One point at `step` for every tag."""
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        for value in summary.value:
            if value.tag not in self._described:
                self._described.add(value.tag)
                value.metadata.summary_description = self._describe(value.tag)
        self._write(Event(wall_time=wall_time or time.time(), step=step, summary=summary))

    def summary(self, summary: Summary) -> None:
        """A summary that belongs to the whole run, such as hyperparameters or a layout."""
        self._write(Event(wall_time=time.time(), summary=summary))

    def close(self) -> None:
        """Closes the file. Raises: OSError where the disk is full."""
        with naming(self.path):
            self._file.close()

    def _write(self, event: Event) -> None:
        with naming(self.path):
            self._file.write(frame(event.SerializeToString()))
            self._file.flush()


def frame(data: bytes) -> bytes:
    """`data` as one TFRecord: length, checksum of the length, data, checksum of the data (little-endian)."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def masked_crc(data: bytes) -> int:
    """CRC-32C of `data`, rotated right by 15 bits plus a constant, as the TFRecord format has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # the Castagnoli polynomial, bits reversed
    return byte


_CRC_TABLE = tuple(_crc_entry(byte) for byte in range(256))


def hparams_start(values: Mapping[str, bool | float | str]) -> Summary:
    """What the HPARAMS page needs when a run begins: its values.

    No run says which columns there are, as TensorBoard would take them from an arbitrary one: then it shows what
    any of the runs has, what differs between them first, and the final value of every scalar.
    """
    session = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
    for key, value in values.items():
        field = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(session.hparams[key], field, value)
    return _hparams("session_start_info", session_start_info=session)


def hparams_end(success: bool) -> Summary:
    """What the HPARAMS page needs when a run ends."""
    status = api_pb2.STATUS_SUCCESS if success else api_pb2.STATUS_FAILURE
    end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
    return _hparams("session_end_info", session_end_info=end)


def _hparams(tag: str, **content) -> Summary:
    data = plugin_data_pb2.HParamsPluginData(version=0, **content).SerializeToString()
    plugin = SummaryMetadata.PluginData(plugin_name="hparams", content=data)
    # Only the metadata says anything, but a value without an (empty) tensor is dropped by the readers.
    empty = TensorProto(dtype=DT_FLOAT, tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=0)]))
    metadata = SummaryMetadata(plugin_data=plugin)
    return Summary(value=[Summary.Value(tag=f"_hparams_/{tag}", metadata=metadata, tensor=empty)])


def layout(
    title: str, charts: Mapping[str, Sequence[str]], bands: Mapping[str, Sequence[str]] | None = None
) -> Summary:
    """A page of custom scalars: each of `charts` draws several tags, each of `bands` one (value, low, high).

    TensorBoard reads a chart's tags as patterns that match from the start, hence the $ added here.
    """
    category = layout_pb2.Category(title=title)
    for name, tags in charts.items():
        category.chart.add(title=name).multiline.tag.extend(f"{tag}$" for tag in tags)
    for name, (value, low, high) in (bands or {}).items():
        category.chart.add(title=name).margin.series.add(value=value, lower=low, upper=high)
    page = layout_pb2.Layout(category=[category])
    tensor = TensorProto(dtype=DT_STRING, string_val=[page.SerializeToString()], tensor_shape=TensorShapeProto())
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    return Summary(value=[Summary.Value(tag="custom_scalars__config__", tensor=tensor, metadata=metadata)])
