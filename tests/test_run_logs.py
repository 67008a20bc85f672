"""What a run says while it trains: rows, TensorBoard events, and the lines a person sees."""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from fake_runs import CONFIG
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import (
    parse_session_end_info_plugin_data,
    parse_session_start_info_plugin_data,
)

from rl_natgrad.config import compose
from rl_natgrad.run import events, folder, logger, progress, records
from rl_natgrad.run.tags import describe


@pytest.fixture
def run(tmp_path):
    return folder.create(tmp_path, "CartPole-v1", "trpo", 3)


# ---- rows ----------------------------------------------------------------------------------------------------


def test_a_row_is_one_line_of_strict_json(run):
    log = logger.Logger(run)
    log.write({"rollout/return": None, "policy/kl": 0.1, "line_search/accepted": True, "a/nan": math.nan}, 2048, 1)
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    assert "NaN" not in line
    row = {"step": 2048, "update": 1, "policy/kl": 0.1, "line_search/accepted": 1, "a/nan": None}
    assert json.loads(line) == row


def test_floats_survive_bit_for_bit(run):
    value = 0.1 + 0.2
    logger.Logger(run).write({"a/b": value}, 1, 1)
    assert records.read_rows(run)[0]["a/b"] == value


def test_a_half_written_last_row_is_left_out(run):
    log = logger.Logger(run)
    log.write({"a/b": 1.5}, 10, 1)
    log.write({"a/b": 2.5}, 20, 2)
    whole = (run / "metrics.jsonl").read_bytes()
    for size in range(len(whole) // 2, len(whole)):
        (run / "metrics.jsonl").write_bytes(whole[:size])
        assert [row["update"] for row in records.read_rows(run)] == [1]


def test_a_broken_earlier_row_is_named(run):
    (run / "metrics.jsonl").write_text('{"step": 1, "update": 1}\n{"step": \n{"step": 3, "update": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        records.read_rows(run)


def test_cut_gives_the_rows_of_the_uninterrupted_run(run, tmp_path):
    whole = folder.create(tmp_path, "CartPole-v1", "trpo", 3)
    log = logger.Logger(whole)
    for update in range(1, 7):
        log.write({"a/b": update / 3}, update * 10, update)
    stopped = logger.Logger(run)
    for update in range(1, 6):
        stopped.write({"a/b": update / 3}, update * 10, update)
    stopped.write({"eval/return": 500.0}, 50, 5)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 6')
    logger.cut(run, 4)
    resumed = logger.Logger(run, purge_step=41)
    for update in range(5, 7):
        resumed.write({"a/b": update / 3}, update * 10, update)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_cut_drops_the_final_evaluation_of_the_last_update(run):
    log = logger.Logger(run)
    log.write({"a/b": 1.0, "eval/return": 3.0}, 10, 1)
    log.write({"a/b": 2.0}, 20, 2)
    log.write({"eval/return": 500.0}, 20, 2)
    logger.cut(run, 2)
    rows = records.read_rows(run)
    assert [row["update"] for row in rows] == [1, 2]
    assert rows[0]["eval/return"] == 3.0 and "eval/return" not in rows[1]


def test_tags_of_older_files_are_read_and_rewritten_under_todays_names(run):
    old = '{"step": 10, "update": 1, "line_search/tries": 3, "search/accepted": 1, "a/b": 0.5}\n'
    new = {"step": 10, "update": 1, "line_search/tries": 3, "line_search/accepted": 1, "a/b": 0.5}
    (run / "metrics.jsonl").write_text(old + old.replace("1", "2"))
    assert records.read_rows(run)[0] == new
    assert logger.cut(run, 1) == [new]
    assert (run / "metrics.jsonl").read_text() == json.dumps(new) + "\n"


def test_runs_are_found_at_any_depth_and_once(tmp_path):
    for name in ("a/b/c/d", "a/x", "y"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "compare" / "trpo" / "iqm").mkdir(parents=True)
    found = records.find_runs([tmp_path, tmp_path / "a"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/b/c/d", "a/x", "y"]


# ---- TensorBoard ---------------------------------------------------------------------------------------------


def read_back(path: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(accumulator: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_crc_and_framing_are_tensorboards():
    for data in (b"", b"123456789", bytes(range(256)) * 3):
        assert events.masked_crc(data) == masked_crc32c(data)
    assert events.masked_crc(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_tags_stand_at_environment_steps_without_close(run):
    log = logger.Logger(run)
    log.write({"policy/kl": 0.25, "rollout/return": None}, 2048, 1)
    log.write({"policy/kl": 0.5, "rollout/return": 21.0}, 4096, 2)
    told = read_back(run)
    assert scalars(told, "policy/kl") == [(2048, 0.25), (4096, 0.5)]
    assert scalars(told, "rollout/return") == [(4096, 21.0)]
    assert set(told.Tags()["scalars"]) == {"policy/kl", "rollout/return"}


def test_a_tag_is_described_with_its_first_point_in_every_file(run):
    log = logger.Logger(run)
    for update in (1, 2):
        log.write({"policy/kl": 0.25, "mine/own": 1.0}, update, update)
    told = read_back(run)
    assert told.SummaryMetadata("policy/kl").summary_description == describe("policy/kl") != ""
    assert told.SummaryMetadata("mine/own").summary_description == ""
    assert scalars(told, "policy/kl") == [(1, 0.25), (2, 0.25)]


def test_resume_purges_what_is_written_again(run):
    log = logger.Logger(run)
    for update in range(1, 6):
        log.write({"a/b": float(update)}, update * 10, update)
    (first,) = run.glob("events.*")
    with open(first, "ab") as file:
        file.write(b"\x10\x00\x00\x00")  # killed in the middle of an event
    logger.cut(run, 3)
    resumed = logger.Logger(run, purge_step=31)
    for update in range(4, 7):
        resumed.write({"a/b": update + 0.5}, update * 10, update)
    expected = [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.5), (50, 5.5), (60, 6.5)]
    assert scalars(read_back(run), "a/b") == expected
    served = PluginEventAccumulator(str(run), tensor_size_guidance={"scalars": 0}).Reload()  # as --load_fast=false
    assert [(event.step, event.tensor_proto.float_val[0]) for event in served.Tensors("a/b")] == expected


def test_hparams_are_what_was_overridden_and_leave_the_columns_to_all_the_runs(run):
    log = logger.Logger(run)
    words = ["solver=cg", "policy.hidden=[64,64]", "algo.normalize_adv=true", "runs_dir=x", "total_steps=1000"]
    log.hparams(CONFIG, words)
    log.close("finished")
    metadata = read_back(run).summary_metadata
    content = {
        tag: data.plugin_data.content
        for tag, data in metadata.items()
        if data.plugin_data.plugin_name == "hparams"
    }
    session = parse_session_start_info_plugin_data(content["_hparams_/session_start_info"]).hparams
    kinds = {key: value.WhichOneof("kind") for key, value in session.items()}
    assert {key: getattr(session[key], kind) for key, kind in kinds.items()} == {
        "algo": "trpo", "env": "CartPole-v1", "seed": 3, "solver": "cg", "policy.hidden": "[64, 64]",
        "algo.normalize_adv": True,
    }  # fmt: skip
    assert "_hparams_/experiment" not in content  # TensorBoard would take the columns from one run's
    assert parse_session_end_info_plugin_data(content["_hparams_/session_end_info"]).status == 1  # success


def test_layout_pairs_predicted_with_realised(run):
    logger.Logger(run)
    (tensor,) = read_back(run).Tensors("custom_scalars__config__")
    page = Layout.FromString(tensor.tensor_proto.string_val[0])
    drawn = [list(chart.multiline.tag) for chart in page.category[0].chart]
    assert drawn == [
        ["policy/kl_predicted$", "policy/kl$"],
        ["policy/gain_predicted$", "policy/gain$"],
    ]


def test_event_files_of_one_second_stay_in_order(tmp_path):
    made = [events.EventFile(tmp_path).path.name for _ in range(12)]
    assert sorted(made) == made and len(set(made)) == 12


def test_logging_imports_neither_torch_nor_tensorflow():
    code = "import sys, rl_natgrad.run.logger; print(sorted({'torch', 'tensorflow', 'rich'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---- what a person sees --------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_header_says_where_how_and_what():
    stream = io.StringIO()
    bar = progress.Progress(1000, stream=stream)
    bar.header(Path("runs/CartPole-v1/trpo/x"), Path("runs"), CONFIG, device="cpu", threads=1)
    assert stream.getvalue().splitlines() == [
        "run     runs/CartPole-v1/trpo/x",
        "watch   tensorboard --logdir runs",
        "trpo · CartPole-v1 · 8 environments × 256 steps · seed 3 · cpu, 1 thread",
    ]


def test_plain_lines_come_now_and_then():
    stream = io.StringIO()
    with progress.Progress(1000, stream=stream) as bar:
        for step in range(1, 1001):
            bar.update(step, {"rollout/return": None if step < 500 else 447.2, "policy/kl": 0.0098})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert "10%  100/1,000  train return -  kl 0.0098" in lines[0] and "train return 447" in lines[-1]
    assert "backtracks" not in lines[0]


def test_backtracks_are_tries_beyond_the_first():
    for algo, said in (("trpo", True), ("npg", False)):  # NPG searches nothing
        stream = io.StringIO()
        bar = progress.Progress(10, stream=stream)
        bar.header(Path("x"), Path("runs"), compose.load([f"algo={algo}"]).tree(), device="cpu", threads=1)
        bar.update(10, {"line_search/tries": 3})
        assert ("backtracks 2" in stream.getvalue()) == said


def test_a_return_that_is_known_is_shown_while_no_episode_ends():
    stream = io.StringIO()
    bar = progress.Progress(20, stream=stream)
    for step, row in ((10, {"rollout/return": 3.0}), (20, {})):
        bar.update(step, row)
    assert "train return 3" in stream.getvalue().splitlines()[-1]


def test_a_terminal_gets_a_bar_that_ends():
    stream = Terminal()
    with progress.Progress(100, stream=stream) as bar:
        bar.update(50, {"rollout/return": 12.0})
        bar.update(100, {"rollout/return": 489.0})
    assert "━" in stream.getvalue() and "100/100" in stream.getvalue()
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_the_final_evaluation_is_counted_beside_a_full_bar_which_stays():
    stream = Terminal()
    with progress.Progress(100, stream=stream) as bar:
        bar.update(100, {"rollout/return": 489.0})
        for episodes in range(41):
            bar.evaluating(episodes, 40)
    text = stream.getvalue()
    assert "evaluating 0/40" in text and "evaluating 40/40" not in text
    assert "train return 489" in text[text.rindex("evaluating"):]


def test_off_a_terminal_only_a_long_evaluation_is_counted(monkeypatch):
    stream, clock = io.StringIO(), iter(range(100))
    with progress.Progress(100, stream=stream) as bar:
        bar.evaluating(0, 40)
        assert stream.getvalue() == ""
        monkeypatch.setattr(time, "monotonic", lambda: bar._start + next(clock))
        for episodes in range(30):
            bar.evaluating(episodes, 40)
    assert 2 <= len(lines := stream.getvalue().splitlines()) <= 3 and lines[0].startswith("evaluating ")


DRAWS = """
import sys
from rl_natgrad.run import progress
progress.REFRESH_SECONDS = 0
with progress.Progress(1000) as bar:
    for line in sys.stdin:
        bar.update(500, {"rollout/return": 1.0, "policy/kl": 0.01})
        bar.evaluating(3, 40)
"""


def test_a_bar_fits_the_terminal_as_it_is_now():
    main, side = pty.openpty()
    env = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"TERM": "xterm"}
    with subprocess.Popen([sys.executable, "-c", DRAWS], stdin=-1, stdout=side, stderr=side, env=env) as process:
        widths, seen = [], b""
        for columns in (120, 70, 30, 200):
            fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            process.send_signal(signal.SIGWINCH)
            process.stdin.write(b"\n")
            process.stdin.flush()
            while b"evaluating 3/40" not in seen:
                seen += os.read(main, 100_000)
            lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", seen.decode()))
            widths.append(max(map(len, lines)))
            seen = b""
        process.stdin.close()
        assert process.wait(20) == 0
    assert 70 < widths[0] <= 120 and 30 < widths[1] <= 70 and widths[2] <= 30 and widths[3] > 70
    os.close(main)
    os.close(side)


def test_a_narrow_terminal_loses_the_least_important_first(monkeypatch):
    monkeypatch.setenv("COLUMNS", "82")
    stream = Terminal()
    with progress.Progress(100, stream=stream) as bar:
        bar.update(100, {"rollout/return": 1.0, "policy/kl": 0.01, "line_search/tries": 1})
    text = stream.getvalue()
    assert "kl" in text and "backtracks" not in text and "eta" in text


def test_last_lines_say_how_it_went_how_to_watch_and_how_to_play():
    stream = io.StringIO()
    bar = progress.Progress(1000, stream=stream)
    bar.done("runs/a", Path("runs"), 101642, train_return=489.3, eval_returns=(500.0, 0.0, 20))
    done, watch, play = stream.getvalue().splitlines()
    returns = "train return 489 (last 100 episodes) · eval return 500 ± 0 (20 episodes)"
    expected = f"done    101,642 steps in 0.0 s · {returns}"
    assert re.sub(r"\d\.\d s", "0.0 s", done) == expected
    assert watch == "watch   tensorboard --logdir runs"
    assert play == "play    python -m rl_natgrad.evaluate run=runs/a"
    assert "return -" in _done_line(outcome="stopped")


def _done_line(**arguments) -> str:
    stream = io.StringIO()
    progress.Progress(10, stream=stream).done("r", Path("runs"), 10, **arguments)
    return stream.getvalue()


def test_an_ascii_stream_is_no_reason_to_stop():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    progress.Progress(10, stream=stream).header(Path("r"), Path("runs"), CONFIG, device="cpu", threads=2)
    assert b"? seed 3" in stream.buffer.getvalue()
