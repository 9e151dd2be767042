"""A row's run is its own: neighbours, padding, the file it is saved in and an interruption change nothing."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from unmask.decode.canvas import Canvas
from unmask.decode.denoiser import CachedDenoiser, FullDenoiser
from unmask.decode.loop import denoise
from unmask.decode.settings import POLICIES, DecodeSettings
from unmask.trajectory import Trajectory, first_difference, load, save

from doubles import RowDenoiser, mixed_scores, tiny_backbone, tiny_config

MASK = 60
FULL = tiny_config(family="dream", attention="full", mask_id=MASK)
BLOCK = tiny_config(attention="block", block_length=4, mask_id=MASK)
CAUSAL = tiny_config()

NETWORKS = {
    "full": (FULL, FullDenoiser),
    "block": (BLOCK, FullDenoiser),
    "block-cached": (BLOCK, CachedDenoiser),
    "causal-cached": (CAUSAL, CachedDenoiser),
}
EVERY_NETWORK = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())

# Eight prompts of eight lengths, two with given text behind the masks, and answers of different lengths.
ROWS = [
    [3, *[None] * 6],
    [4, 8, *[None] * 8],
    [7, 7, 1, *[None] * 4],
    [9, 2, 2, 30, *[None] * 6],
    [41, 5, 6, 7, 8, *[None] * 3],
    [11, 12, None, None, 13, 14, *[None] * 4],
    [20, 21, 22, 23, 24, 25, 26, *[None] * 5],
    [31, 32, 33, 34, *[None] * 5, 35, 36, 37],
]
END_IDS = (2, 17, 33, 50)

backbone_of = cache(tiny_backbone)


def run(network, rows, settings, *, samples, end_ids=END_IDS, align=None):
    """Decode rows; give back the canvas and each row's trajectory."""
    config, denoiser_class = network
    denoiser = denoiser_class(backbone_of(config))
    canvas = Canvas.from_rows(rows, mask_id=config.mask_id, align=align or config.block_length or 1)
    out = [
        Trajectory(initial_ids=list(row), seed=settings.seed, sample=sample)
        for row, sample in zip(rows, samples, strict=True)
    ]
    events = denoise(denoiser, canvas, settings, samples=samples, end_ids=end_ids, suppressed_ids=[0, 1])
    for event in events:
        for row in event.active:
            out[row].record(event, row=row)
    return canvas, out


def confidences(trajectory):
    return [(c.position, c.confidence, c.entropy) for step in trajectory.steps for c in step.commits]


# --- neighbours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["full", "block-cached", "causal-cached"])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_batch_of_eight_is_eight_single_runs(network, policy):
    check_batch(NETWORKS[network], DecodeSettings(policy=policy, temperature=0.8, seed=5))


@EVERY_NETWORK
def test_a_greedy_batch_of_eight_is_eight_single_runs(network):
    check_batch(network, DecodeSettings())


def check_batch(network, settings):
    samples = [3, 1, 4, 1, 5, 9, 2, 6]
    _, together = run(network, ROWS, settings, samples=samples)
    for row, sample, ours in zip(ROWS, samples, together, strict=True):
        _, (alone,) = run(network, [row], settings, samples=[sample])
        assert first_difference(ours, alone) is None, "token for token and step for step"
        for one, other in zip(confidences(ours), confidences(alone), strict=True):
            assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        DecodeSettings(steps=5, block_length=4, temperature=1.0),
        DecodeSettings(policy="maskgit_plus", policy_temperature=0.3, temperature=0.6, top_p=0.9),
        DecodeSettings(policy="threshold", threshold=0.15, steps=6, temperature=0.5, temperature_role="content"),
        DecodeSettings(policy="factor", factor=2.0, block_length=3, top_k=7),
    ],
)
def test_no_setting_couples_the_rows(settings):
    network = NETWORKS["full"]
    _, together = run(network, ROWS, settings, samples=range(8))
    for number, (row, ours) in enumerate(zip(ROWS, together, strict=True)):
        _, (alone,) = run(network, [row], settings, samples=[number])
        assert first_difference(ours, alone) is None


def test_where_the_network_gives_the_same_bits_the_record_has_the_same_bits():
    """Confidence and entropy too, to the last digit."""
    settings = DecodeSettings(temperature=0.7, top_p=0.9)

    def decode(rows, samples):
        denoiser = RowDenoiser(FULL, mixed_scores(61, seed=1))
        events = list(denoise(denoiser, Canvas.from_rows(rows, mask_id=MASK), settings, samples=samples))
        return [
            [
                (e.step, c.position, c.token_id, c.confidence, c.entropy)
                for e in events
                for c in e.commits
                if c.row == row
            ]
            for row in range(len(rows))
        ]

    together = decode(ROWS, range(8))
    assert together == [decode([row], [number])[0] for number, row in enumerate(ROWS)]
    assert together[::-1] == decode(ROWS[::-1], range(7, -1, -1)), "nor does the order of the rows"


# --- padding ------------------------------------------------------------------------------------------------------


@EVERY_NETWORK
@pytest.mark.parametrize("padding", [1, 3, 8, 40])
def test_left_padding_changes_nothing(network, padding):
    """A settled neighbour that is longer pushes the row to the right."""
    row = ROWS[3]
    settings = DecodeSettings(temperature=0.6)
    canvas, (alone,) = run(network, [row], settings, samples=[0])
    longer = [5] * (len(row) + padding)
    padded, (ours, _) = run(network, [row, longer], settings, samples=[0, 1])
    assert int(padded.start_B[0]) > 0 or network[0].attention == "block"
    assert first_difference(ours, alone) is None
    assert padded.row_ids(0) == canvas.row_ids(0)


@EVERY_NETWORK
@pytest.mark.parametrize("align", [4, 8, 32])
def test_right_padding_changes_nothing(network, align):
    settings = DecodeSettings(temperature=0.6)
    for row in ROWS[::3]:
        _, (alone,) = run(network, [row], settings, samples=[0])
        _, (ours,) = run(network, [row], settings, samples=[0], align=align)
        assert first_difference(ours, alone) is None


# --- samples and seeds --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_sample_number_is_the_same_answer_and_another_is_another(policy):
    settings = DecodeSettings(policy=policy, temperature=1.0)
    rows = [ROWS[1]] * 5
    _, runs = run(NETWORKS["full"], rows, settings, samples=[0, 1, 0, 2, 1], end_ids=())
    assert first_difference(runs[0], runs[2]) is None
    assert first_difference(runs[1], runs[4]) is None
    answers = {tuple(run.ids_at(len(run.steps))) for run in runs}
    assert len(answers) == 3


def test_rows_number_their_samples_by_themselves_when_none_are_given():
    settings = DecodeSettings(temperature=1.0)
    rows = [ROWS[1]] * 3
    canvases = [Canvas.from_rows(rows, mask_id=MASK) for _ in range(2)]
    for canvas, samples in zip(canvases, (None, [0, 1, 2]), strict=True):
        list(denoise(FullDenoiser(backbone_of(FULL)), canvas, settings, samples=samples))
    assert torch.equal(canvases[0].ids_BL, canvases[1].ids_BL)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_saves_the_same_bytes(policy, tmp_path):
    settings = DecodeSettings(policy=policy, temperature=0.9, seed=11)
    for name in ("one", "two"):
        _, runs = run(NETWORKS["full"], ROWS[:3], settings, samples=range(3))
        save(tmp_path / name, runs)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    _, others = run(NETWORKS["full"], ROWS[:3], replace(settings, seed=12), samples=range(3))
    save(tmp_path / "three", others)
    assert (tmp_path / "three").read_bytes() != (tmp_path / "one").read_bytes()


# --- resuming -----------------------------------------------------------------------------------------------------

RESUMED = {
    "counting": DecodeSettings(policy="entropy", steps=7, temperature=0.7),
    "counting-blocks": DecodeSettings(policy="maskgit_plus", steps=7, block_length=4, temperature=0.7),
    "drawn-positions": DecodeSettings(policy="topk_margin", policy_temperature=0.2, block_length=4),
    "left-to-right": DecodeSettings(policy="left_to_right", steps=5, temperature=1.0),
    "threshold": DecodeSettings(policy="threshold", threshold=0.12, temperature=0.7),
    "threshold-steps-blocks": DecodeSettings(policy="threshold", steps=6, block_length=4, temperature=0.7),
    "factor-blocks": DecodeSettings(policy="factor", factor=1.9, block_length=4),
    "random": DecodeSettings(policy="random", steps=6, block_length=4, temperature=0.7),
    "origin": DecodeSettings(policy="origin", temperature=0.7),
    "origin-blocks": DecodeSettings(policy="origin", steps=10, block_length=4, temperature=0.7),
}


def resume(network, trajectory, settings, *, at):
    """Take one row's run up again from its record."""
    config, denoiser_class = network
    ids = trajectory.ids_at(at)
    committed_at = [None] * len(ids)
    for number, step in enumerate(trajectory.steps[:at]):
        for commit in step.commits:
            committed_at[commit.position] = number
    canvas = Canvas.from_rows(
        [ids], mask_id=config.mask_id, align=config.block_length or 1, committed_at=[committed_at]
    )
    rest = denoise(
        denoiser_class(backbone_of(config)),
        canvas,
        settings,
        samples=[trajectory.sample],
        end_ids=END_IDS,
        suppressed_ids=[0, 1],
        first_step=at,
    )
    return canvas, list(rest)


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED.keys())
@pytest.mark.parametrize("network", ["full", "block-cached"])
def test_a_run_resumed_at_any_step_ends_as_the_unbroken_run(network, settings, tmp_path):
    network = NETWORKS[network]
    rows = [ROWS[0], ROWS[5]]
    whole, trajectories = run(network, rows, settings, samples=[4, 5])
    save(tmp_path / "run.jsonl", trajectories)
    for row, trajectory in enumerate(load(tmp_path / "run.jsonl")):
        for at in range(len(trajectory.steps) + 1):
            canvas, events = resume(network, trajectory, settings, at=at)
            assert canvas.row_ids(0) == whole.row_ids(row)
            here = slice(int(whole.start_B[row]), int(whole.end_B[row]))
            mine = slice(int(canvas.start_B[0]), int(canvas.end_B[0]))
            assert torch.equal(canvas.committed_at_BL[0, mine], whole.committed_at_BL[row, here])
            assert [event.step for event in events] == list(range(at, len(trajectory.steps)))


def test_an_autoregressive_run_resumes_at_any_step():
    settings = DecodeSettings(temperature=0.9)
    whole, (trajectory,) = run(NETWORKS["causal-cached"], [ROWS[1]], settings, samples=[2])
    for at in range(len(trajectory.steps) + 1):
        canvas, _ = resume(NETWORKS["causal-cached"], trajectory, settings, at=at)
        assert canvas.row_ids(0) == whole.row_ids(0)


def test_another_seed_from_the_middle_keeps_the_first_half():
    settings = DecodeSettings(temperature=1.0)
    whole, (trajectory,) = run(NETWORKS["full"], [ROWS[1]], settings, samples=[0], end_ids=())
    canvas, _ = resume(NETWORKS["full"], trajectory, replace(settings, seed=99), at=5)
    kept = whole.committed_at_BL < 5
    assert torch.equal(canvas.ids_BL[kept], whole.ids_BL[kept])
    assert not torch.equal(canvas.ids_BL, whole.ids_BL)
