"""Metrics: whole lines, a resumed file that equals an uninterrupted one, and sinks that get the same numbers."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unmask.errors import CheckpointError, SettingsError
from unmask.train.metrics import (
    CLOCK,
    ConsoleSink,
    MetricsLog,
    ModuleSink,
    console_line,
    matmul_peak,
    open_sinks,
    peak_memory,
    read_metrics,
)


class Recorder:
    """Stands in for wandb, and for TensorBoard's module."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def init(self, **settings: Any) -> None:
        self.calls.append(("init", settings))

    def log(self, values: dict[str, float], step: int) -> None:
        self.calls.append((step, values))

    def finish(self) -> None:
        self.calls.append("finish")


def run(path: Path, steps: range, *, first_step: int = 0) -> None:
    log = MetricsLog(path, first_step=first_step)
    for step in steps:
        log.write(step, {"loss": 1 / step, "tokens_per_second": 7.0 * len(str(path))})
    log.close()


def without_clock(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in read_metrics(path)]


def test_a_record_is_on_the_disk_when_write_returns(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.write(1, {"loss": 2.5, "loss_by_level": [1.0, None]})
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert (record["step"], record["loss"], record["loss_by_level"]) == (1, 2.5, [1.0, None])
    log.close()


@pytest.mark.parametrize("torn", ["", '{"step": 10, "lo', '{"step": 4}', "\x00\x00"])
def test_a_resumed_file_equals_that_of_an_uninterrupted_run(torn: str, tmp_path: Path) -> None:
    run(tmp_path / "straight", range(1, 10))
    run(tmp_path / "broken", range(1, 8))
    with (tmp_path / "broken").open("a") as file:
        file.write(torn)
    run(tmp_path / "broken", range(6, 10), first_step=5)
    assert without_clock(tmp_path / "broken") == without_clock(tmp_path / "straight")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_new_run_starts_with_an_empty_file(tmp_path: Path) -> None:
    run(tmp_path / "metrics", range(1, 5))
    run(tmp_path / "metrics", range(1, 3))
    assert [record["step"] for record in read_metrics(tmp_path / "metrics")] == [1, 2]


def test_numbers_that_are_none_are_null_and_the_file_stays_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics")
    log.write(1, {"loss": math.nan, "loss_by_level": [math.inf, 1.0]})
    log.close()
    record = json.loads((tmp_path / "metrics").read_text(), parse_constant=pytest.fail)
    assert (record["loss"], record["loss_by_level"]) == (None, [None, 1.0])


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    run(tmp_path / "metrics", range(1, 5))
    lines = (tmp_path / "metrics").read_text().splitlines(keepends=True)
    (tmp_path / "metrics").write_text("".join([*lines[:2], "rubbish\n", *lines[3:]]))
    with pytest.raises(CheckpointError, match=r"line 3 of .*metrics is no record of metrics; move the file away"):
        MetricsLog(tmp_path / "metrics", first_step=4)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"the metrics could not be written to .* free some space there"):
        MetricsLog(tmp_path / "file" / "metrics")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's always full device")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics")
    log.close()
    with pytest.raises(OSError), Path("/dev/full").open("a", encoding="utf-8") as file:  # noqa: PT012
        log._file = file
        with pytest.raises(CheckpointError, match=r"could not be written to .* \(No space left on device\)"):
            log.write(1, {"loss": 1.0})


# --- sinks ------------------------------------------------------------------------------------------------------------


def test_a_wandb_shaped_module_gets_every_scalar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "trackio", recorder)  # type: ignore[arg-type]
    sinks = open_sinks(["trackio"], folder=tmp_path, run="tiny/sft", settings={"lr": 0.1})
    log = MetricsLog(tmp_path / "metrics", sinks=sinks)
    log.write(3, {"loss": 2.0, "end_ce": math.nan, "loss_by_level": [None, 1.5]})
    log.close()
    assert recorder.calls == [
        ("init", {"project": "unmask", "name": "tiny/sft", "config": {"lr": 0.1}}),
        (3, {"loss": 2.0, "loss_by_level/1": 1.5}),
        "finish",
    ]


def test_tensorboard_gets_every_scalar_and_hides_the_steps_that_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class SummaryWriter:
        def __init__(self, folder: str, *, purge_step: int) -> None:
            calls.append((folder, purge_step))

        def add_scalar(self, *call: Any) -> None:
            calls.append(call)

        def flush(self) -> None:
            pass

        def close(self) -> None:
            calls.append("close")

    module = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)  # type: ignore[arg-type]
    sinks = open_sinks(["tensorboard"], folder=tmp_path, run="tiny", settings={}, first_step=5)
    sinks[0].write(6, {"loss": 2.0})
    sinks[0].close()
    assert calls == [(str(tmp_path / "tensorboard"), 6), ("loss", 2.0, 6), "close"]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_an_absent_package_is_named_with_its_remedy(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(SettingsError) as caught:
        open_sinks([name], folder=tmp_path, run="tiny", settings={})
    assert f"the metrics are to go to {name}" in str(caught.value)
    assert f"install it with `pip install {name}`, or leave it out of run.sinks" in str(caught.value)


def test_a_module_that_does_not_log_is_refused() -> None:
    with pytest.raises(SettingsError, match="the sink 'json' has no init, log, finish; a sink is `tensorboard` or"):
        ModuleSink("json", run="tiny", settings={})


def test_the_terminal_gets_one_plain_line_for_each_record_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleSink(total_steps=7)
    sink.write(6, {"loss": 1.0})
    sink.write(7, {"heldout_nelbo": 2.0})
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ") for line in err.splitlines()] == [["step 6/7", "loss 1"], ["step 7/7", "heldout_nelbo 2"]]


def test_a_line_leaves_out_what_is_absent_or_a_list() -> None:
    values = {"loss": 0.5, "end_ce": None, "loss_by_level": [1.0], "memory_bytes": 3 * 2**30, "mfu": 0.4567}
    assert console_line(2, values, total_steps=9) == "step 2/9  loss 0.5  3.0 GiB  mfu 45.7%"


def test_a_line_says_acceptance_in_short_numbers_and_leaves_out_distances_that_no_block_reaches() -> None:
    values = {"acceptance": [0.713, 0.5, 1.0, None], "tokens_per_round": 2.4265, "tokens_per_second": 84.4}
    line = console_line(2, values, total_steps=9)
    assert line == "step 2/9  acceptance .71 .50 1.00  tokens_per_round 2.43  84 tokens/s"
    held = {"heldout_acceptance": [0.25], "heldout_tokens_per_round": 1.25}
    assert console_line(2, held, total_steps=9).endswith("  heldout_acceptance .25  heldout_tokens_per_round 1.25")


# --- the machine ------------------------------------------------------------------------------------------------------


def test_the_peak_is_the_rate_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = [0.0, 1.0, 1.75, 0.1, 2.0, 2.5, 0.2, 3.0, 3.75, 9.0]
    monkeypatch.setattr("unmask.train.metrics.time.perf_counter", lambda: readings.pop(0))
    assert matmul_peak(torch.device("cpu"), torch.float32, size=8, seconds=0.3) == 2 * 8**3 / 0.5


def test_peak_memory_grows_with_what_is_held() -> None:
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    held = torch.ones(before // 4)  # as much again
    assert peak_memory(cpu) > before + held.nbytes // 4
