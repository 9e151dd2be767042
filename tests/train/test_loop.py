"""The loop: what it leaves behind, and what it says when it cannot run or must stop."""

import errno
import json
import os
import resource
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter

from unmask.data.shards import ShardWriter, fingerprint
from unmask.diffusion.settings import Corruption, Objective
from unmask.errors import CheckpointError, DataError, NumericsError, SettingsError, UnmaskError
from unmask.model.adapter import merge_adapter
from unmask.model.backbone import Backbone
from unmask.model.checkpoint import load_folder, save_folder
from unmask.text.tokenizer import Tokenizer
from unmask.train import state
from unmask.train.checks import is_done
from unmask.train.loop import _Run, train_stage
from unmask.train.network import build_network, fresh_backbone
from unmask.train.parallel import World
from unmask.train.settings import SourceSettings, StageSettings
from unmask.train.sources import open_mixture
from unmask.train.step import Trainee

from training_runs import (
    SHAPE,
    alone,
    assert_same_bits,
    changed,
    make_data,
    records,
    start,
    tiny_stage,
    together,
    wait,
    weights,
    write_texts,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


# What a run leaves


def test_a_run_leaves_settings_log_checkpoints_and_a_folder_to_load(data: Path, tmp_path: Path) -> None:
    stage = changed(tiny_stage(data), "run", keep=2)
    outcome = alone(stage, tmp_path / "run")
    assert outcome.is_done
    assert outcome.folder == tmp_path / "run" / "final"
    assert is_done(stage, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["optimiser"]["lr"] == 0.01
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-00000004",
        "step-00000006",
    ]
    assert Tokenizer.from_folder(outcome.folder).encode("def") == Tokenizer.byte_level().encode("def")
    network = load_folder(outcome.folder, dtype=torch.float32, device=torch.device("cpu"))
    assert network.config.attention == "full"
    assert network.config.mask_id == 256
    lines = records(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 6]
    assert [line["tokens"] for line in lines if "loss" in line] == [step * 8 * 48 for step in range(1, 7)]
    assert outcome.last["heldout_nelbo"] == lines[-1]["heldout_nelbo"]


def test_the_average_is_what_is_exported(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=3, ema=0.5)
    alone(stage, tmp_path / "averaged")
    alone(replace(stage, ema=None), tmp_path / "plain")
    averaged, plain = weights(tmp_path / "averaged"), weights(tmp_path / "plain")
    assert not torch.equal(averaged["norm.weight"], plain["norm.weight"])
    losses = [[line["loss"] for line in records(tmp_path / name) if "loss" in line] for name in ("averaged", "plain")]
    assert losses[0] == losses[1], "training itself does not see it"


def test_an_adapter_and_the_merged_network_are_the_same_function(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=3, lora=True)
    alone(stage, tmp_path / "run")
    base = build_network(stage.model, kind="diffusion", lora=None, seed=stage.seed).backbone
    merge_adapter(base, tmp_path / "run" / "adapter")
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, base.state_dict()[name], rtol=1e-5, atol=1e-6, msg=name)


def test_an_evaluator_gets_a_plain_network_at_each_evaluation_and_its_numbers_are_logged(
    data: Path, tmp_path: Path
) -> None:
    seen: list[int] = []

    def evaluator(backbone: Backbone, tokenizer: Tokenizer, *, step: int, folder: Path) -> Mapping[str, float]:
        seen.append(step)
        assert not any(".lora_" in name for name, _ in backbone.named_parameters())
        assert folder == tmp_path / "run"
        return {"pass_at_1": 0.25}

    outcome = alone(tiny_stage(data, lora=True), tmp_path / "run", evaluator=evaluator)
    assert seen == [4, 6]
    assert outcome.last["pass_at_1"] == 0.25
    assert [line["pass_at_1"] for line in records(tmp_path / "run") if "pass_at_1" in line] == [0.25, 0.25]


def test_complementary_pairs_predict_every_token_of_a_pair_once(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=2, attention="full")
    alone(changed(stage, "loss", corruption=Corruption(pairs=True)), tmp_path / "run")
    for line in records(tmp_path / "run"):
        if "loss" in line:
            assert line["epoch"] == pytest.approx(max(line["step"] * 4 / 2 / rows for rows in row_counts(data)))


def row_counts(data: Path) -> list[int]:
    stage = tiny_stage(data)
    return [source.num_rows for source in open_mixture(stage.data.train, stage, Tokenizer.byte_level()).sources]


@pytest.mark.parametrize("weight", ["elbo", "cart", "none"])
@pytest.mark.parametrize("normaliser", ["token", "sequence", "pooled"])
def test_every_objective_trains(data: Path, tmp_path: Path, weight: Any, normaliser: Any) -> None:
    stage = changed(tiny_stage(data, steps=2), "loss", objective=Objective(weight=weight, normaliser=normaliser))
    alone(changed(stage, "data", heldout=(), micro_rows=8), tmp_path / "run")
    first, second = records(tmp_path / "run")
    assert second["loss"] > 0
    assert first["loss"] != second["loss"]


# What it refuses


def refused(stage: StageSettings, folder: Path, error: type[UnmaskError], message: str) -> None:
    with pytest.raises(error, match=message):
        alone(stage, folder)
    assert not folder.exists(), "nothing was begun"


def texts(stage: StageSettings, folder: Path) -> StageSettings:
    return changed(stage, "data", train=(SourceSettings(path=str(folder)),))


def test_shards_of_another_tokenizer_are_refused(data: Path, tmp_path: Path) -> None:
    other = write_texts(tmp_path / "other", ["x = 1\n"], tokenizer=Tokenizer.byte_level(("<|mask|>",)))
    refused(
        texts(tiny_stage(data), other),
        tmp_path / "run",
        DataError,
        r"other holds ids of the tokenizer \w{12}, and the model's tokenizer is \w{12}: the same ids are other words "
        r"there; build the shards again with `unmask data build",
    )


def test_an_empty_data_set_is_refused_when_it_is_written_and_when_it_is_read(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there are no documents to write to .*empty; give sources with text"):
        write_texts(tmp_path / "empty", [])
    refused(texts(tiny_stage(data), tmp_path / "empty"), tmp_path / "run", DataError, r"empty is no folder of shards")


def test_one_document_is_enough_unless_it_is_one_token(data: Path, tmp_path: Path) -> None:
    stage = changed(tiny_stage(data, steps=2), "data", heldout=())
    alone(texts(stage, write_texts(tmp_path / "short", ["x = 1"])), tmp_path / "run")
    assert all(line["loss"] > 0 for line in records(tmp_path / "run"))
    refused(
        texts(stage, write_texts(tmp_path / "shortest", ["x"])),
        tmp_path / "none",
        DataError,
        r"rows of .*shortest hold nothing to predict: each document has one token, or is all prompt; build it again",
    )


def test_a_document_longer_than_a_row_is_refused_with_what_can_be_done(data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.byte_level()
    with ShardWriter(tmp_path / "long", vocab_size=258, tokenizer=fingerprint(tokenizer)) as writer:
        writer.add(tokenizer.encode("say x:" + "x" * 60), prompt_length=6)
    source = SourceSettings(path=str(tmp_path / "long"), rows="pairs")
    refused(
        changed(tiny_stage(data), "data", train=(source,)),
        tmp_path / "run",
        DataError,
        r"document 0 of .*long has 66 tokens and 4 for its end; a row has 48: give a length of at least 70, or",
    )


def test_rows_longer_than_the_context_are_refused(data: Path, tmp_path: Path) -> None:
    refused(
        changed(tiny_stage(data), "data", length=129),
        tmp_path / "run",
        SettingsError,
        r"data.length=129 is longer than the network's context of 128; set data.length=128 or less",
    )


def test_nothing_to_train_on_is_refused(data: Path, tmp_path: Path) -> None:
    refused(
        changed(tiny_stage(data), "data", train=()),
        tmp_path / "run",
        SettingsError,
        r"the stage has nothing to train on: build shards with `unmask data build` and give their folder",
    )


def test_pairs_need_a_token_that_ends_them(data: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.byte_level(("<|mask|>",))
    tokenizer.save(tmp_path / "tokenizer")
    write_texts(tmp_path / "texts", ["x = 1\n"], tokenizer=tokenizer)
    stage = changed(tiny_stage(data), "model", tokenizer=str(tmp_path / "tokenizer"))
    source = SourceSettings(path=str(tmp_path / "texts"), rows="pairs")
    refused(
        changed(stage, "data", train=(source,)),
        tmp_path / "run",
        CheckpointError,
        r"the tokenizer has neither a pad token nor an end token to put behind answers; take a checkpoint's own",
    )


@pytest.mark.parametrize(
    ("attention", "corruption", "message"),
    [
        (
            "block",
            Corruption(kind="block", block_length=8),
            r"attends in blocks of 4 and the corruption is 'block' with blocks of 8: each block needs a noise of its "
            r"own; set loss.corruption.kind=block and loss.corruption.block_length=4",
        ),
        ("block", Corruption(), r"attends in blocks of 4 and the corruption is 'exact_k': each block needs a noise"),
        (
            "full",
            Corruption(kind="block", block_length=8),
            r"loss.corruption.kind=block, but the network attends 'full'; set model.attention=block with "
            r"model.block_length=8, or loss.corruption.kind=exact_k",
        ),
    ],
)
def test_noise_and_attention_of_different_blocks_are_refused(
    data: Path, tmp_path: Path, attention: str, corruption: Corruption, message: str
) -> None:
    stage = changed(tiny_stage(data, attention=attention), "loss", corruption=corruption)
    refused(stage, tmp_path / "run", SettingsError, message)


def test_annealing_is_refused_where_no_causal_mask_opens(data: Path, tmp_path: Path) -> None:
    refused(
        changed(tiny_stage(data, attention="block"), "loss", anneal_steps=5),
        tmp_path / "run",
        SettingsError,
        r"loss.anneal_steps=5 has no effect on block attention, which opens no causal mask; set it to 0, or",
    )


def test_end_tokens_weigh_what_the_pairs_say_and_not_what_texts_beside_them_have(data: Path, tmp_path: Path) -> None:
    texts_beside, pairs = tiny_stage(data).data.train
    assert texts_beside.end_tokens == 4
    stage = changed(tiny_stage(data), "data", train=(texts_beside, replace(pairs, end_tokens=1)))
    stage = changed(stage, "loss", objective=Objective(weight="none"))
    run = _Run(stage, tmp_path, world=World(), evaluator=None, quiet=True)
    for batch in run.batches(0):
        for row in range(len(batch.index_B)):
            for document in batch.sight.document_BL[row].unique():
                place_M = batch.column_M + 1
                is_here_M = (batch.row_M == row) & (batch.sight.document_BL[row, place_M] == document)
                assert float(batch.weight_M[is_here_M & batch.is_end_M].sum()) <= 1 + 1e-6


def test_rows_that_ranks_cannot_share_evenly_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"data.rows=8 cannot be shared evenly among 3 processes; set data.rows=9"):
        train_stage(tiny_stage(data), tmp_path / "run", world=World(size=3, layout="ddp"))


def test_a_checkpoint_of_another_architecture_is_refused_before_anything_is_read(data: Path, tmp_path: Path) -> None:
    stage = tiny_stage(data, steps=2)
    alone(stage, tmp_path / "run")
    meta = tmp_path / "run" / "checkpoints" / "step-00000002" / "meta.json"
    record = json.loads(meta.read_text())
    record["architecture"]["num_layers"] = 24
    meta.write_text(json.dumps(record))
    with pytest.raises(
        CheckpointError,
        match=r"step-00000002 belongs to a network of another architecture; different are num_layers \(24 there, 2 "
        r"now\)\. Resume it with its own recipe, or begin anew in another --output",
    ):
        alone(stage, tmp_path / "run", resume=True)


# When it must stop


def poisoned(data: Path, folder: Path, *, byte: int | None) -> StageSettings:
    """A stage that starts with infinite weights for one token, or in its last norm."""
    # Apart: a tied head would score every token with the infinite row.
    backbone = fresh_backbone(replace(SHAPE, attention="full", mask_id=256, tie_embeddings=False), seed=0)
    with torch.no_grad():
        target = backbone.norm.weight if byte is None else backbone.embed_tokens.weight[byte]
        target.fill_(torch.inf)
    save_folder(backbone, folder)
    Tokenizer.byte_level().save(folder)
    stage: StageSettings = tiny_stage(data)
    return changed(stage, "model", config=None, source=str(folder), init_mask_row=False)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_samples(data: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", ["x" * 47 + "\n"] * 30 + ["y" * 47 + "\n"] + ["x" * 47 + "\n"] * 9)
    stage = texts(changed(poisoned(data, tmp_path / "source", byte=ord("y")), "data", heldout=()), tmp_path / "texts")
    stage = changed(stage, "run", save_every=1)
    mixture = open_mixture(stage.data.train, stage, Tokenizer.byte_level())
    guilty = next(s for s in range(40) if mixture.place(s).row == 30)
    assert guilty >= 8, "not in the first step"
    with pytest.raises(NumericsError) as found:
        alone(stage, tmp_path / "run")
    step = guilty // 8
    assert str(found.value) == (
        f"step {step}: the loss of sample {guilty} (row 30 of {tmp_path / 'texts'}) is not a number; nothing was "
        f"updated, the last checkpoint is {tmp_path / 'run' / 'checkpoints' / f'step-{step:08d}'}. Resume with a lower "
        "optimiser.lr or clip_norm, or look at these rows of the data"
    )
    assert records(tmp_path / "run")[-1]["step"] == step
    assert state.latest(tmp_path / "run" / "checkpoints") is not None


def test_a_first_step_without_a_number_says_that_there_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    stage = poisoned(data, tmp_path / "source", byte=None)
    with pytest.raises(
        NumericsError,
        match=r"step 0: the loss of sample 0 \(row .*, sample 3 \(row .*\) and 4 more is not a number; nothing was "
        r"updated, and no checkpoint was written yet\. Resume with",
    ):
        alone(stage, tmp_path / "run")
    assert not is_done(stage, tmp_path / "run")


def test_a_gradient_that_is_no_number_stops_the_run_too(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmask.train.rig.clip_gradients", lambda module, limit: torch.tensor(torch.inf))
    with pytest.raises(NumericsError, match=r"step 0: the gradient norm is inf; nothing was updated"):
        alone(tiny_stage(data), tmp_path / "run")


def break_one_rank(who: World, stage: StageSettings, folder: Path) -> None:
    """Both ranks must raise when the loss of one is no number."""
    whole = Trainee.nll

    def broken(self: Trainee, batch: Any, *, precision: torch.dtype) -> torch.Tensor:
        nll_M = whole(self, batch, precision=precision)
        return nll_M * torch.nan if who.rank == 1 else nll_M

    Trainee.nll = broken  # type: ignore[method-assign]
    with pytest.raises(NumericsError, match=r"step 0: the loss of sample 4 .*, sample 7 \(row .*\) is not a number"):
        train_stage(stage, folder, world=who, quiet=True)


def fail_to_write_on_one_rank(who: World, stage: StageSettings, folder: Path) -> None:
    """Both ranks must raise when one cannot make the folder."""
    if who.is_first:
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints").rmdir()
        (folder / "checkpoints").write_text("a file, where a folder is to be")
    with pytest.raises(CheckpointError, match=r"step-00000002 could not be written \(.*\); no checkpoint is there yet"):
        train_stage(stage, folder, world=who, quiet=True)


def fail(who: World, stage: StageSettings, folder: Path) -> None:
    fail_to_write_on_one_rank(who, stage, folder / "unwritable")
    break_one_rank(who, stage, folder / "broken")


def test_what_stops_one_rank_stops_all(data: Path, tmp_path: Path) -> None:
    together(fail, tiny_stage(data), tmp_path)


# A full disk


def full_disk(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Every write of a checkpoint from the one numbered `at` on fails, half-way."""
    write, calls = FileSystemWriter.write_data, []

    def full(self: FileSystemWriter, plan: Any, planner: Any) -> Any:
        calls.append(1)
        if len(calls) >= at:
            Path(self.path, "__0_0.distcp").write_bytes(b"half of it")  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, plan, planner)

    monkeypatch.setattr(FileSystemWriter, "write_data", full)


def test_a_full_disk_leaves_the_checkpoint_before_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = tiny_stage(data)
    alone(stage, tmp_path / "whole")
    with monkeypatch.context() as patch:
        full_disk(patch, at=2)
        with pytest.raises(
            CheckpointError,
            match=r"step-00000004 could not be written \(.*No space left on device.*\); step-00000002 before it stays "
            r"valid: make room and go on with --resume",
        ):
            alone(stage, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    alone(stage, tmp_path / "run", resume=True)
    assert_same_bits(tmp_path / "whole", tmp_path / "run")


def write_with_a_limit(who: World, stage: StageSettings, folder: Path, limit: int) -> None:
    """A real refusal of the operating system, in the middle of a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    with pytest.raises(CheckpointError, match=r"step-00000002 could not be written \(.+\); no checkpoint is there yet"):
        train_stage(stage, folder, world=who, quiet=True)
    assert not list((folder / "checkpoints").iterdir())


def test_a_file_that_the_system_cuts_short_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    (process,) = start(write_with_a_limit, tiny_stage(data), tmp_path / "run", 50_000)
    assert wait(process) == 0
