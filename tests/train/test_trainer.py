"""The training loop on a tiny network: every setting acts, and the result is that of a loop written out by hand."""

import io
import json
import logging
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import nn

from t2v_turbo.train.config import TrainerConfig
from t2v_turbo.train.training import trainer
from t2v_turbo.train.training.ema import EMA
from t2v_turbo.train.training.run_checkpoints import in_order, load_weights, weights_of
from t2v_turbo.train.training.stats import Stats
from t2v_turbo.train.training.trainer import DivergedError, Trainer, WriteError, newest_checkpoint, read_stats, seeded

# Settings that switch off all that a plain loop does not have.
PLAIN = TrainerConfig(
    steps=8, batch_size=4, lr=0.05, warmup=0, decay=0.0, beta2=0.9, max_grad_norm=None, ema_decay=None, log_every=1,
    save_every=100,
)  # fmt: skip
DATA = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
GOAL = DATA @ torch.tensor([[3.0], [-2.0], [1.0]])


class Line(nn.Module):
    """A linear map that notes what autocast makes of it, and gives another output where it is compiled."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        with torch.no_grad(), seeded(7):
            self.linear = nn.Linear(3, 1)
        self.dropout, self.dtypes, self.modes = nn.Dropout(dropout), [], set()

    def compile(self) -> None:
        super().compile(backend="eager")  # the default one needs a C++ compiler and a minute

    def forward(self, x):
        y = self.linear(self.dropout(x))
        if torch.compiler.is_compiling():
            return y + 10
        self.dtypes.append(y.dtype)
        self.modes.add(torch.are_deterministic_algorithms_enabled())
        return y


def batch_of(step: int, part: int = 0, parts: int = 1, size: int = 4) -> slice:
    start = (step * parts + part) * size % 60
    return slice(start, start + size)


class Losses:
    """The squared error on rows that follow from the step; ``noise`` adds numbers from the step's generator."""

    def __init__(self, config: TrainerConfig, noise: float = 0.0):
        self.config, self.noise, self.calls = config, noise, 0

    def __call__(self, model, step, generator):
        rows = batch_of(step, self.calls % self.config.accumulate, self.config.accumulate, self.config.batch_size)
        self.calls += 1
        device = next(model.parameters()).device
        goal = GOAL[rows] + self.noise * torch.randn(self.config.batch_size, 1, generator=generator)
        return {"loss": (model(DATA[rows].to(device)).float() - goal.to(device)).square().mean()}


def trainer_of(config, folder, model=None, noise=0.0, cpu=True, **more):
    return Trainer(config, model or Line(), Losses(config, noise), folder, cpu=cpu, **more)


def by_hand(config: TrainerConfig, rates: list[float], clip: float | None = None) -> list[torch.Tensor]:
    """AdamW (Loshchilov and Hutter, Algorithm 2) in float64: the weights and biases (4,) before and after each step."""
    weights = torch.cat([p.detach().flatten() for p in Line().linear.parameters()]).double()
    mean, square, path = torch.zeros(4).double(), torch.zeros(4).double(), [weights.clone()]
    for step, rate in enumerate(rates):
        gradient = torch.zeros(4).double()
        for part in range(config.accumulate):
            rows = batch_of(step, part, config.accumulate, config.batch_size)
            x = torch.cat([DATA[rows], torch.ones(config.batch_size, 1)], dim=1).double()
            gradient += 2 * x.T @ (x @ weights - GOAL[rows, 0]) / len(x) / config.accumulate
        if clip and gradient.norm() > clip:
            gradient *= clip / gradient.norm()
        mean = 0.9 * mean + 0.1 * gradient
        square = config.beta2 * square + (1 - config.beta2) * gradient**2
        direction = (mean / (1 - 0.9 ** (step + 1))) / ((square / (1 - config.beta2 ** (step + 1))).sqrt() + 1e-8)
        weights = weights - rate * (direction + config.weight_decay * weights)
        path.append(weights.clone())
    return path


def flat(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.linear.parameters()])


def assert_follows(trained, expected):
    torch.testing.assert_close(flat(trained).double(), expected, rtol=1e-4, atol=1e-4)


# --- every setting acts ----------

# Another value for each setting; those of the learning rate's shape need a few steps to tell.
OTHERS = {
    "steps": 5, "batch_size": 3, "accumulate": 2, "lr": 0.02, "warmup": 4, "decay": 0.5, "weight_decay": 0.3,
    "beta2": 0.5, "max_grad_norm": 0.1, "ema_decay": 0.7, "precision": "bf16", "compile": True, "seed": 3,
    "deterministic": True, "log_every": 3, "save_every": 2, "keep_checkpoints": 3,
}  # fmt: skip


def outcome(config, folder):
    """All that a run leaves: weights, lines without their times, checkpoints; and the modes inside."""
    AcceleratorState._reset_state(reset_partial_state=True)  # which allows one precision a process
    model = Line()
    trained = trainer_of(config, folder, model, noise=0.1).run()
    lines = [{name: line[name] for name in sorted(line) if name != "seconds_per_step"} for line in read_stats(folder)]
    checkpoints = [path.name for path in in_order(folder / "checkpoints")]
    return flat(trained).tolist(), lines, checkpoints, set(model.dtypes), model.modes


def test_no_setting_is_forgotten_here():
    assert set(OTHERS) == {f.name for f in fields(TrainerConfig)}


@pytest.mark.parametrize("name", OTHERS)
def test_a_setting_acts(name, tmp_path):
    base = replace(PLAIN, save_every=3 if name == "keep_checkpoints" else 100)
    assert outcome(base, tmp_path / "a") == outcome(base, tmp_path / "b")
    assert outcome(base, tmp_path / "a2") != outcome(replace(base, **{name: OTHERS[name]}), tmp_path / "c")


# --- the arithmetic ----------


@pytest.mark.parametrize(
    "change", [{}, {"lr": 0.01}, {"weight_decay": 0.5}, {"beta2": 0.999}, {"accumulate": 3}, {"steps": 3, "beta2": 0.5}]
)
def test_the_weights_are_those_of_adamw(change, tmp_path):
    config = replace(PLAIN, **change)
    path = by_hand(config, [config.lr] * config.steps)
    assert_follows(trainer_of(config, tmp_path).run(), path[-1])
    assert len(read_stats(tmp_path)) == config.steps


def test_the_rate_rises_stays_and_falls(tmp_path):
    config = replace(PLAIN, steps=10, warmup=4, decay=0.3)
    shape = [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    rates = [config.lr * factor for factor in shape]
    trained = trainer_of(config, tmp_path).run()
    assert [line["lr"] for line in read_stats(tmp_path)] == pytest.approx(rates, rel=1e-4)
    assert_follows(trained, by_hand(config, rates)[-1])
    assert (by_hand(config, rates)[-1] - by_hand(config, [config.lr] * 10)[-1]).abs().max() > 0.01


@pytest.mark.parametrize("limit, accumulate", [(0.5, 1), (0.5, 3), (None, 1), (0.0, 1)])
def test_gradients_are_clipped_to_their_norm(limit, accumulate, tmp_path):
    config = replace(PLAIN, max_grad_norm=limit, accumulate=accumulate, weight_decay=0.1)
    trained = trainer_of(config, tmp_path).run()
    path = by_hand(config, [config.lr] * 8, clip=limit)
    assert_follows(trained, path[-1])
    if limit:  # the test can tell: all of these gradients are longer
        assert (path[-1] - by_hand(config, [config.lr] * 8)[-1]).abs().max() > 0.01
    # What is logged is the norm before the clipping, here of the first step: of the mean over all of its rows.
    rows = slice(0, 4 * accumulate)
    x = torch.cat([DATA[rows], torch.ones(4 * accumulate, 1)], dim=1)
    norm = (2 * x.T @ (x @ flat(Line()) - GOAL[rows, 0]) / len(x)).norm()
    assert read_stats(tmp_path)[0]["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("decay", [0.5, 0.95])
def test_the_exported_average_is_the_warmed_up_one(decay, tmp_path):
    """After n updates the decay is min(decay, 1 − (1 + n)^(−3/4)); raw weights stay in the checkpoint."""
    exported = []
    config = replace(PLAIN, ema_decay=decay, save_every=5)
    trained = trainer_of(config, tmp_path, export=lambda model, step: exported.append((step, flat(model)))).run()
    path, average, expected = by_hand(config, [config.lr] * 8), None, {}
    for n, weights in enumerate(path[1:]):
        warm = min(decay, 1 - (1 + n) ** -0.75)
        average = weights if average is None else warm * average + (1 - warm) * weights
        expected[n + 1] = average
    assert_follows(trained, expected[8])
    assert [step for step, _ in exported] == [5, 8]
    for step, weights in exported:
        torch.testing.assert_close(weights.double(), expected[step], rtol=1e-4, atol=1e-4)
    raw = load_file(newest_checkpoint(tmp_path) / "model.safetensors")
    torch.testing.assert_close(raw["linear.weight"].double()[0], path[-1][:3], rtol=1e-4, atol=1e-4)
    assert (path[-1] - expected[8]).abs().max() > 0.01


def test_without_an_average_the_weights_themselves_are_exported(tmp_path):
    exported = []
    trainer_of(PLAIN, tmp_path, export=lambda model, step: exported.append(flat(model).clone())).run()
    torch.testing.assert_close(exported[-1].double(), by_hand(PLAIN, [PLAIN.lr] * 8)[-1], rtol=1e-4, atol=1e-4)


def test_an_average_of_constant_decay():
    model, start = nn.Linear(2, 2), nn.Linear(2, 2)
    average = EMA(start, 0.75)
    for _ in range(3):
        average.follow(model)
    left = 0.75**3
    expected = left * start.weight + (1 - left) * model.weight
    torch.testing.assert_close(average.network.weight, expected.detach())
    assert not any(p.requires_grad for p in average.parameters()) and start.weight.requires_grad


def test_a_follower_follows_every_step(tmp_path):
    follower = EMA(Line(), 0.9)
    trainer_of(PLAIN, tmp_path, follower=follower).run()
    expected = None
    for weights in by_hand(PLAIN, [PLAIN.lr] * 8):
        expected = weights if expected is None else 0.9 * expected + 0.1 * weights
    assert_follows(follower.network, expected)


@pytest.mark.parametrize("precision, inside", [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_is_that_of_the_forward_pass(precision, inside, tmp_path):
    model = Line()
    trainer_of(replace(PLAIN, precision=precision), tmp_path, model).run()
    assert set(model.dtypes) == {inside}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_half_precision_wants_a_gpu(tmp_path):
    with pytest.raises(ValueError, match="precision=fp16 needs a GPU: use bf16 or no"):
        trainer_of(replace(PLAIN, precision="fp16"), tmp_path)


def test_a_compiled_network_keeps_the_names_of_its_weights(tmp_path):
    trainer_of(replace(PLAIN, compile=True), tmp_path / "compiled").run()
    compiled, plain = read_stats(tmp_path / "compiled"), by_hand(PLAIN, [PLAIN.lr] * 8)
    rows = batch_of(0)
    x = torch.cat([DATA[rows], torch.ones(4, 1)], dim=1).double()
    assert compiled[0]["loss"] == pytest.approx((x @ plain[0] + 10 - GOAL[rows, 0]).square().mean().item(), rel=1e-4)
    assert set(load_file(newest_checkpoint(tmp_path / "compiled") / "model.safetensors")) == {
        "linear.weight", "linear.bias"}  # fmt: skip


# --- randomness ----------


@pytest.mark.parametrize("dropout, noise", [(0.5, 0.0), (0.0, 1.0)])
def test_dropout_and_draws_follow_the_seed_and_the_step(dropout, noise, tmp_path):
    def losses(name, **change):
        torch.rand(len(name))  # what was drawn before does not matter
        trainer_of(replace(PLAIN, lr=0.0, **change), tmp_path / name, Line(dropout), noise).run()
        return [line["loss"] for line in read_stats(tmp_path / name)]

    first = losses("a")
    assert first == losses("bcd") != losses("e", seed=1)
    assert len(set(first)) == len(first)


def test_an_operation_that_is_not_deterministic_is_told(tmp_path):
    def losses(model, step, generator):
        return {"loss": model(DATA[:4]).sum() + torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2)).sum()}

    with pytest.raises(ValueError, match=r"deterministic=true: put_ has no such algorithm here"):
        Trainer(replace(PLAIN, deterministic=True), Line(), losses, tmp_path, cpu=True).run()
    assert not torch.are_deterministic_algorithms_enabled()
    Trainer(PLAIN, Line(), losses, tmp_path, cpu=True).run()


def test_fresh_weights_follow_the_seed_and_leave_the_global_numbers_alone():
    def fresh(seed):
        with seeded(seed):
            return nn.Linear(4, 4).weight

    torch.manual_seed(5)
    first, then = fresh(0), torch.rand(3)
    assert torch.equal(first, fresh(0)) and not torch.equal(first, fresh(1))
    torch.manual_seed(5)
    assert torch.equal(then, torch.rand(3))


# --- logs and checkpoints ----------


def test_logs_and_checkpoints_come_when_they_are_due(tmp_path):
    config = replace(PLAIN, steps=11, log_every=4, save_every=3, keep_checkpoints=2)
    saved = []
    trainer_of(config, tmp_path, export=lambda model, step: saved.append(step)).run()
    assert [line["step"] for line in read_stats(tmp_path)] == [4, 8, 11]
    assert saved == [3, 6, 9, 11]
    assert [path.name for path in in_order(tmp_path / "checkpoints")] == ["step-000009", "step-000011"]
    assert sum(path.stat().st_size for path in (tmp_path / "tensorboard").iterdir()) > 100


RESUMED = replace(PLAIN, steps=6, warmup=2, decay=0.5, ema_decay=0.8, save_every=3, weight_decay=0.1)


def stopped_after(step, folder, config=RESUMED, **more):
    """A run that was killed when the checkpoint of ``step`` was written."""

    def die(model, at):
        if at == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer_of(config, folder, Line(0.3), 0.5, export=die, **more).run()


def test_a_stopped_run_ends_as_one_without_a_stop(tmp_path):
    whole_follower, follower = EMA(Line(), 0.9), EMA(Line(), 0.9)
    whole = trainer_of(RESUMED, tmp_path / "whole", Line(0.3), 0.5, follower=whole_follower).run()
    stopped_after(3, tmp_path / "stopped", follower=EMA(Line(), 0.9))
    resumed = trainer_of(RESUMED, tmp_path / "stopped", Line(0.3), 0.5, follower=follower).run()
    assert torch.equal(flat(whole), flat(resumed))
    assert torch.equal(flat(whole_follower.network), flat(follower.network))
    lines = [[{**line, "seconds_per_step": 0} for line in read_stats(tmp_path / name)] for name in ("whole", "stopped")]
    assert lines[0] == lines[1] and len(lines[0]) == 6


def older(checkpoint: Path) -> None:
    """Rewrite a checkpoint as runs of several processes once wrote it, through accelerate."""
    ema, model = (load_file(checkpoint / f"{name}.safetensors") for name in ("ema", "model"))
    names = [f"network.{name}" for name, _ in Line().named_parameters()]
    save_file({f"{i:05d}": ema[name] for i, name in enumerate(names)}, checkpoint / "ema.safetensors")
    save_file({f"module.{name}": value for name, value in model.items()}, checkpoint / "model.safetensors")
    torch.save({"random_state": (3, (1, 2), None)}, checkpoint / "random_states_0.pkl")
    progress = json.loads((checkpoint / "progress.json").read_text())
    del progress["files"]
    (checkpoint / "progress.json").write_text(json.dumps(progress))


def test_checkpoints_of_older_runs_are_read(tmp_path):
    whole = trainer_of(RESUMED, tmp_path / "whole", Line(0.3), 0.5, follower=EMA(Line(), 0.9)).run()
    stopped_after(3, tmp_path / "stopped", follower=EMA(Line(), 0.9))
    older(tmp_path / "stopped" / "checkpoints" / "step-000003")
    resumed = trainer_of(RESUMED, tmp_path / "stopped", Line(0.3), 0.5, follower=EMA(Line(), 0.9)).run()
    assert torch.equal(flat(whole), flat(resumed))


@pytest.mark.parametrize("change", [{"weight_decay": 0.9}, {"beta2": 0.1}, {"lr": 0.5}, {"max_grad_norm": 0.01}])
def test_a_setting_that_is_changed_on_the_way_acts(change, tmp_path):
    stopped_after(3, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    same = trainer_of(RESUMED, tmp_path / "a", Line(0.3), 0.5).run()
    changed = trainer_of(replace(RESUMED, **change), tmp_path / "b", Line(0.3), 0.5).run()
    assert not torch.equal(flat(same), flat(changed))


def test_an_average_may_begin_on_the_way(tmp_path, caplog):
    stopped_after(3, tmp_path, replace(RESUMED, ema_decay=None))
    averaged = trainer_of(replace(RESUMED, steps=4), tmp_path, Line(0.3), 0.5).run()
    assert "had no averaged weights: their average starts here" in caplog.text
    third, fourth = (load_file(tmp_path / "checkpoints" / f"step-00000{i}" / "model.safetensors") for i in (3, 4))
    warm = 1 - 2**-0.75
    expected = warm * third["linear.weight"] + (1 - warm) * fourth["linear.weight"]
    torch.testing.assert_close(averaged.linear.weight, expected)


def test_checkpoints_are_ordered_by_number(tmp_path):
    """Names beyond step 999999 are longer: neither rotation nor resuming may take them for older ones."""
    config = replace(PLAIN, steps=1_000_002, save_every=1, log_every=100, keep_checkpoints=2)
    begun = trainer_of(config, tmp_path)
    begun.step = 999_998
    begun.run()
    assert [path.name for path in in_order(tmp_path / "checkpoints")] == ["step-1000001", "step-1000002"]
    assert newest_checkpoint(tmp_path).name == "step-1000002"
    resumed = trainer_of(config, tmp_path)
    resumed.run()
    assert resumed.step == 1_000_002


def test_weights_that_share_are_kept_once_and_come_back(tmp_path):
    def twins():
        pair = nn.Module()
        pair.one = nn.Linear(3, 3)
        pair.two, pair.own = pair.one, nn.Linear(3, 3)
        return pair

    with seeded(1):
        first, second = twins(), twins()
    saved = weights_of(first)
    assert len(saved) == 4
    load_weights(second, {name: value.clone() for name, value in saved.items()})
    assert torch.equal(first.two.weight, second.two.weight) and torch.equal(first.own.bias, second.own.bias)
    with pytest.raises(KeyError, match=r"own\.bias"):
        load_weights(second, {name: value for name, value in saved.items() if name != "own.bias"})


# --- damage ----------


def truncate(name):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def empty(folder):
    for path in folder.iterdir():
        path.unlink()


DAMAGE = {
    "half of the weights": (truncate("model.safetensors"), "model.safetensors cannot be read"),
    "half of the optimiser": (truncate("optimizer.bin"), "optimizer.bin cannot be read"),
    "half of the average": (truncate("ema.safetensors"), "ema.safetensors cannot be read"),
    "half of the progress": (truncate("progress.json"), "progress.json cannot be read"),
    "no weights": (remove("model.safetensors"), "model.safetensors is missing"),
    "no optimiser": (remove("optimizer.bin"), "optimizer.bin is missing"),
    "no average": (remove("ema.safetensors"), "ema.safetensors is missing"),
    "nothing": (empty, "progress.json is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(kind, tmp_path, caplog):
    damage, told = DAMAGE[kind]
    whole = trainer_of(RESUMED, tmp_path, Line(0.3), 0.5).run()
    damage(tmp_path / "checkpoints" / "step-000006")
    caplog.set_level(logging.WARNING)
    again = trainer_of(RESUMED, tmp_path, Line(0.3), 0.5).run()
    assert torch.equal(flat(whole), flat(again))
    (warning,) = caplog.messages
    assert f"step-000006 is damaged ({told}" in warning and "going on from step-000003" in warning
    assert len(warning.splitlines()) == 1
    assert newest_checkpoint(tmp_path).name == "step-000006"


def test_damaged_checkpoints_do_not_outlive_new_ones(tmp_path):
    """One of a later step than the run's own would be kept as the newest, in place of a whole one."""
    trainer_of(RESUMED, tmp_path, Line(0.3), 0.5).run()
    empty(tmp_path / "checkpoints" / "step-000006")
    trainer_of(replace(RESUMED, steps=5, keep_checkpoints=1), tmp_path, Line(0.3), 0.5).run()
    assert [path.name for path in in_order(tmp_path / "checkpoints")] == ["step-000005"]


def test_without_a_whole_checkpoint_the_user_is_told_what_to_delete(tmp_path):
    trainer_of(RESUMED, tmp_path, Line(0.3), 0.5).run()
    for path in in_order(tmp_path / "checkpoints"):
        truncate("optimizer.bin")(path)
    with pytest.raises(ValueError) as error:
        trainer_of(RESUMED, tmp_path, Line(0.3), 0.5).run()
    assert "step-000006 is damaged (optimizer.bin" in str(error.value)
    assert f"delete {tmp_path}/checkpoints to begin anew" in str(error.value)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    trainer_of(PLAIN, tmp_path).run()
    other = Line()
    other.linear = nn.Linear(3, 1, bias=False)
    with pytest.raises(ValueError, match=r"step-000008: is of another network \(.*linear\.bias.*use another folder"):
        trainer_of(PLAIN, tmp_path, other).run()


def test_a_checkpoint_without_the_follower_is_refused(tmp_path):
    trainer_of(PLAIN, tmp_path).run()
    with pytest.raises(ValueError, match=r"is of another network \('follower'\)"):
        trainer_of(PLAIN, tmp_path, follower=EMA(Line(), 0.9)).run()


# --- a full disk ----------


class Wide(Line):
    """Some 60 kB of weights, so that the files of a checkpoint differ in size."""

    def __init__(self):
        super().__init__()
        with seeded(8):
            self.more = nn.Linear(120, 120)

    def forward(self, x):
        return self.linear(x) + self.more.weight.square().mean()


@pytest.fixture
def files_up_to():
    """Sets the size beyond which no file of this process can grow, as if the disk were full."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limit, name", [(40_000, "model.safetensors"), (90_000, "optimizer.bin")])
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_in_part(limit, name, tmp_path, files_up_to):
    config = replace(PLAIN, save_every=2, ema_decay=0.9)

    def fill(model, step):
        if step == 4:
            files_up_to(limit)

    with pytest.raises(WriteError) as error:
        trainer_of(config, tmp_path, Wide(), export=fill).run()
    files_up_to(10**9)
    assert f"{tmp_path}: cannot be written" in str(error.value) and name in str(error.value)
    assert f"{tmp_path}/checkpoints/step-000004 is whole, the same command goes on from it" in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    resumed = trainer_of(config, tmp_path, Wide())
    resumed.run()
    assert torch.equal(flat(resumed.averaged()), flat(trainer_of(config, tmp_path / "whole", Wide()).run()))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("limit, whole_lines", [(80, 0), (200, 1)])  # too few bytes for a line; for the events of one
def test_a_full_disk_while_logging_is_one_line(limit, whole_lines, tmp_path, files_up_to, capfd, monkeypatch):
    monkeypatch.setattr(trainer, "tqdm", partial(trainer.tqdm, file=io.StringIO()))  # what captures it is a file too
    files_up_to(limit)
    with pytest.raises(WriteError, match="no checkpoint was saved yet"):
        trainer_of(PLAIN, tmp_path).run()
    files_up_to(10**9)
    assert len(read_stats(tmp_path)) == whole_lines
    assert "Traceback" not in capfd.readouterr().err
    trainer_of(PLAIN, tmp_path).run()
    assert len(read_stats(tmp_path)) == 8


def test_an_export_that_failed_is_made_up_for(tmp_path):
    def full(model, step):
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match=r"No space left on device\); .*step-000008 is whole"):
        trainer_of(PLAIN, tmp_path, export=full).run()
    exported = []
    trainer_of(PLAIN, tmp_path, export=lambda model, step: exported.append(step)).run()
    assert exported == [8]


def test_an_error_of_reading_is_not_told_as_one_of_writing(tmp_path):
    def broken(model, step, generator):
        raise FileNotFoundError("records/000001.tar")

    with pytest.raises(FileNotFoundError, match=r"records/000001\.tar"):
        Trainer(PLAIN, Line(), broken, tmp_path, cpu=True).run()


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    trainer_of(PLAIN, tmp_path).run()
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')
    assert [line["step"] for line in read_stats(tmp_path)] == [1, 2, 3, 4, 5, 6, 7, 8]
    Stats(tmp_path, 5).close()
    assert [json.loads(line)["step"] for line in (tmp_path / "stats.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]


# --- mistakes ----------


@pytest.mark.parametrize("limit", [1.0, None])
def test_an_infinite_gradient_is_not_saved(limit, tmp_path):
    """A finite loss may have a gradient that is none; its step would spoil the weights of the checkpoint."""
    config = replace(PLAIN, save_every=2, max_grad_norm=limit)
    losses = Losses(config)

    def spoiled(model, step, generator):
        values = losses(model, step, generator)
        root = (model.linear.weight.sum() * 0).sqrt() if step == 3 else 0.0  # 0, with an infinite slope
        return {"loss": values["loss"] + root}

    with pytest.raises(DivergedError, match=r"grad_norm is nan at step 4; the last checkpoint in .* is intact"):
        Trainer(config, Line(), spoiled, tmp_path, cpu=True).run()
    assert newest_checkpoint(tmp_path).name == "step-000002"


def test_a_launcher_that_asks_for_what_is_not_done_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match="gradient_accumulation_steps is not used: set accumulate=…"):
        trainer_of(PLAIN, tmp_path)
    monkeypatch.setattr(trainer.Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(ValueError, match="FSDP splits the network, which the trainer does not do: use --multi_gpu"):
        trainer_of(PLAIN, tmp_path)


# --- on a card ----------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_on_a_card_a_stopped_run_ends_the_same(precision, tmp_path):
    config = replace(RESUMED, precision=precision, deterministic=True)
    whole = trainer_of(config, tmp_path / "whole", Line(0.3), 0.5, cpu=False, follower=EMA(Line(), 0.9)).run()
    assert next(whole.parameters()).is_cuda
    stopped_after(3, tmp_path / "stopped", config, cpu=False, follower=EMA(Line(), 0.9))
    resumed = trainer_of(config, tmp_path / "stopped", Line(0.3), 0.5, cpu=False, follower=EMA(Line(), 0.9)).run()
    assert torch.equal(flat(whole), flat(resumed))
