"""Architecture search: what a controller draws, what a child computes, and what REINFORCE's gradient is on average."""

import itertools
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d

from normlab.cli import main
from normlab.config import load
from normlab.data.part import Minibatches, Part, parted
from normlab.engine.build import build
from normlab.engine.evaluate import evaluate
from normlab.engine.optim import sgd
from normlab.engine.schedule import cosine_restarts
from normlab.engine.session import open_session
from normlab.models.controller import OPERATIONS, Controller, number_of_choices, uniform_architectures
from normlab.models.enas import Child, Halved, SearchedCell
from normlab.norm.average import MovingAverage
from normlab.norm.layer import Normalizer
from normlab.norm.lstm import NormLSTMCell
from normlab.reading import read_jsonl
from normlab.replicas import RunningStatistics, normalizers, own_statistics
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder
from normlab.tasks.search import reinforce

SMALL = (
    *("task=search", "model.nodes=2", "model.layers=1", "model.filters=4", "data.fraction=0.1", "task.held_out=0.3"),
    *("batch=1x8", "threads=1", "tracker=none", "phases.controller.updates=2", "norm=bn"),
)
NORMS = ("none", "ln", "gn", "sn_ln_gn")


def controller(norm: str, nodes: int = 3) -> Controller:
    chosen = [f"parts.controller.norm.name={norm}", "parts.controller.norm.groups=4"] if "gn" in norm else []
    given = [*SMALL, *(chosen or [f"parts.controller={norm}"]), f"model.nodes={nodes}", "model.hidden=16"]
    config = load([*given, "precision=fp64"])
    return build(config).model.controller.double()  # type: ignore[union-attr,operator]


def uniform(architectures: int, nodes: int = 3, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(architectures, number_of_choices(nodes), generator=draw, dtype=torch.float64)


# ---- the controller ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_ten_architectures_in_one_batch_are_ten_by_themselves(norm):
    """And their gradients: the sum over ten."""
    made, numbers = controller(norm), uniform(10)
    together = made(numbers)
    together.log_probability.sum().backward()
    gradients = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad()
    for k in range(10):
        alone = made(numbers[k : k + 1])
        assert torch.equal(alone.architectures[0], together.architectures[k])
        torch.testing.assert_close(alone.log_probability[0], together.log_probability[k], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone.entropy[0], together.entropy[k], rtol=1e-12, atol=1e-12)
        alone.log_probability.sum().backward()
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-7, atol=1e-9, msg=name)


def by_hand(made: Controller, architecture: list) -> tuple[float, float]:
    """The logarithm of an architecture's probability and its entropy, with torch's own cell, step by step."""
    H = made.lstm.hidden_size
    cell = nn.LSTMCell(H, H, bias=False, dtype=torch.float64)
    cell.load_state_dict(made.lstm.state_dict())
    h = c = torch.zeros(1, H, dtype=torch.float64)
    found: list[tuple[torch.Tensor, int]] = []
    for number, nodes in enumerate(architecture):
        anchors, keys, x = [], [], made.begin
        for _ in range(2):
            h, c = cell(x, (h, c))
            anchors.append(torch.zeros_like(h))
            keys.append(h @ made.anchor.weight.T)
        for a, on_a, b, on_b in nodes:
            for chosen in (a, b):
                h, c = cell(x, (h, c))
                scores = [torch.tanh(key + h @ made.query.weight.T) @ made.score.weight.T for key in keys]
                found.append((1.1 * torch.tanh(torch.cat(scores, 1)[0]), chosen))
                x = anchors[chosen]
            for operation in (on_a, on_b):
                h, c = cell(x, (h, c))
                logits = 1.1 / 2.5 * torch.tanh((h @ made.operation.weight.T + made.operation.bias)[0])
                bias = torch.tensor([0.25, 0.25, -0.25, -0.25, -0.25], dtype=torch.float64)
                found.append((logits + bias * (number == 0), operation))
                x = made.embedding[operation][None]
            h, c = cell(x, (h, c))
            anchors.append(h)
            keys.append(h @ made.anchor.weight.T)
            x = made.begin
    probabilities = [(logits.exp() / logits.exp().sum(), chosen) for logits, chosen in found]
    return (
        sum(math.log(p[chosen].item()) for p, chosen in probabilities),
        sum(-(p * p.log()).sum().item() for p, _ in probabilities),
    )


def test_probability_and_entropy_step_by_step():
    made, numbers = controller("none"), uniform(4)
    drawn = made(numbers)
    assert drawn.architectures.shape == (4, 2, 3, 4)
    for k, architecture in enumerate(drawn.architectures.tolist()):
        expected = by_hand(made, architecture)
        assert [drawn.log_probability[k].item(), drawn.entropy[k].item()] == pytest.approx(expected, abs=1e-10)
    assert not drawn.entropy.requires_grad


def test_it_draws_by_its_probabilities():
    """Of 5,000 first choices of an operation, each option as often as it is probable, by four standard errors."""
    made, count = controller("none", nodes=1), 5_000
    with torch.no_grad():
        drawn = made(uniform(count, 1))
    operations = drawn.architectures[:, 0, 0, 1]
    logits = 0.44 * torch.tensor([10, 10, 0, 0, 0.0]).tanh() + torch.tensor([0.25, 0.25, -0.25, -0.25, -0.25])
    for option, p in enumerate(logits.softmax(0).tolist()):  # h is small: what it adds is within the error
        share = (operations == option).double().mean().item()
        assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / count) + 0.01)


def test_random_architectures_have_equal_chances():
    drawn = uniform_architectures(uniform(30_000, 2), 2)
    assert drawn.shape == (30_000, 2, 2, 4) and drawn.min() == 0
    for node, (place, options) in itertools.product(range(2), enumerate((None, 5, None, 5))):
        count = torch.bincount(drawn[:, 1, node, place], minlength=1).double()
        assert len(count) == (options or node + 2)
        assert count.div(30_000) == pytest.approx(torch.full_like(count, 1 / len(count)), abs=0.015)


@pytest.mark.parametrize("norm", NORMS)
def test_parts_have_their_norms(norm, capsys):
    assert main(["plan", *SMALL, f"parts.controller={norm}"]) == 0
    model = build(load([*SMALL, f"parts.controller={norm}"])).model
    inside = [layer for layer in normalizers(model.controller)]  # type: ignore[arg-type]
    assert len(inside) == (0 if norm == "none" else 3)
    assert isinstance(model.controller.lstm, NormLSTMCell)  # type: ignore[union-attr]
    assert {tuple(layer.mean_scopes) for layer in normalizers(model.child)} == {("bn",)}  # type: ignore[arg-type]


@pytest.mark.parametrize("more", [["norm=in"], ["norm=sn"], ["parts.controller=bn"], ["parts.controller=hn"]])
def test_norms_that_an_lstm_cannot_have(more, capsys):
    assert main(["train", *SMALL, *more]) == 2
    error = capsys.readouterr().err
    assert "parts.controller: scope '" in error and error.count("\n") == 1
    assert "allowed: ln, gn, as parts.controller=sn_ln_gn has them" in error


@pytest.mark.parametrize(("more", "message"), [
    ("model.filters=5", "model.filters=5: expected an even number"),
    ("model.auxiliary=true", "the head pools 5x5 pixels, and maps have 2x2 there"),
    ("model=digits_resnet", "task=search takes search; allowed: enas_digits, enas_micro"),
])  # fmt: skip
def test_mistakes(more, message, capsys):
    given = SMALL if more != "model=digits_resnet" else [word for word in SMALL if not word.startswith("model.")]
    assert main(["plan", *given, "parts.controller=ln", more]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ---- the child -----------------------------------------------------------------------------------------------------


def test_a_cell_by_hand():
    """Pooling, identity and both convolutions; nodes that nothing takes are joined."""
    torch.manual_seed(0)
    cell, draw = SearchedCell((4, 6), True, 6, 3).double(), torch.Generator().manual_seed(1)
    before = torch.randn(5, 4, 8, 8, generator=draw, dtype=torch.float64)
    last = torch.randn(5, 6, 4, 4, generator=draw, dtype=torch.float64)
    found = cell(before, last, [[0, 0, 1, 2], [2, 1, 1, 3], [1, 4, 1, 4]])

    zero = cell.first(before)
    branches = [[branch for branch in node] for node in cell.nodes]
    two = branches[0][0].separable[0][0](zero) + avg_pool2d(last, 3, 1, 1, count_include_pad=False)
    three = branches[1][0].separable[1][2](two) + max_pool2d(last, 3, 1, 1)
    four = last + last
    joined = torch.cat([three, four], 1).relu()  # 0, 1 and 2 are taken
    weight = torch.cat([cell.joined[k].weight for k in (3, 4)], 1)
    torch.testing.assert_close(found, cell.norm(nn.functional.conv2d(joined, weight)))
    assert [m.kernel_size[0] for m in branches[1][0].separable[1][2] if isinstance(m, nn.Conv2d)] == [5, 1, 5, 1]


def test_halving_takes_every_pixel_once():
    halved, x = Halved(1, 2), torch.arange(25.0).view(1, 1, 5, 5)
    nn.init.ones_(halved.here.weight), nn.init.ones_(halved.aside.weight)
    halved.norm = nn.Identity()
    assert halved(x)[0].tolist() == [
        [[0, 2, 4], [10, 12, 14], [20, 22, 24]],
        [[6, 8, 0], [16, 18, 0], [0, 0, 0]],
    ]


@pytest.mark.parametrize(("layers", "sides"), [(1, [4, 2, 2]), (2, [4, 2, 2, 2]), (6, [8, 8, 4, 4, 4, 2, 2, 2])])
def test_two_cells_reduce(layers, sides):
    child = Child((1, 8, 8), 10, layers=layers, filters=4, nodes=2, dropout=0, auxiliary=False)
    shapes: list[tuple[int, ...]] = []
    for cell in child.cells:
        cell.register_forward_hook(lambda module, given, out: shapes.append(tuple(out.shape[1:])))
    logits, _ = child(torch.randn(3, 1, 8, 8), [[[0, 0, 1, 0], [0, 2, 2, 4]]] * 2)
    assert logits.shape == (3, 10) and [shape[1] for shape in shapes] == sides
    assert shapes[0][0] == (8 if layers < 3 else 4) and shapes[-1][0] == 16


def test_the_papers_network(capsys):
    """ENAS's own, on CIFAR-10: eight cells, 80 branches with two kernels for each input, and a head that is frozen."""
    given = ["task=search", "model=enas_micro", "data=cifar10", "norm=bn", "parts.controller=none", "batch=1x160"]
    assert main(["plan", *given]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    separable = 8 * 2 * sum(range(2, 7)) * 2 * 2  # cells, branches, inputs of five nodes, kernels, twice
    fitted = 2 + 1 + 1 + 1  # what the stem gives, in the first cell twice and in the second; ahead of both that reduce
    assert "45000 for training, 5000 for minibatches for rewards, 5000 for validation, 10000 for test" in shown
    model = build(load([*given, "data=synthetic", "data.size=32"])).model
    names = [name for name, m in model.named_modules() if isinstance(m, Normalizer)]
    assert sum(".separable." in name for name in names) == separable
    assert len(names) == separable + fitted + 1 + 2 + 8 + 2  # the stem, halvings, what is joined, the second head
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("child.auxiliary.") for name in frozen)
    drawn = uniform_architectures(uniform(1, 5), 5)[0].tolist()
    logits, auxiliary = model.child(torch.randn(2, 3, 32, 32), drawn)  # type: ignore[operator]
    assert logits.shape == auxiliary.shape == (2, 10)
    assert model.eval().child(torch.randn(2, 3, 32, 32), drawn)[1] is None  # type: ignore[operator]


# ---- REINFORCE -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [0.0, 0.4])
def test_the_gradient_is_that_of_the_expected_reward(baseline):
    """Three arms: what reinforce gives for each arm, weighted by its chance, is the gradient of -E[reward], exactly."""
    logits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64)
    exact = torch.autograd.grad(-(logits.softmax(0) * rewards).sum(), logits)[0]
    mean = torch.zeros_like(exact)
    for arm, p in enumerate(logits.softmax(0).tolist()):
        loss = reinforce(logits.log_softmax(0)[arm : arm + 1], rewards[arm : arm + 1], baseline)
        mean += p * torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(mean, exact, rtol=1e-13, atol=1e-15)


def test_three_arms_drawn_many_times():
    """The controller's own way of drawing: the mean of 4,000 gradients is the exact one, by four standard errors."""
    from normlab.models.controller import _Choices

    logits = torch.tensor([0.3, -0.7, 1.1], dtype=torch.float64, requires_grad=True)
    rewards, count = torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64), 4000
    exact = torch.autograd.grad(-(logits.softmax(0) * rewards).sum(), logits)[0]
    numbers = torch.rand(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    choices = _Choices(numbers)
    arms = choices.make(logits.expand(count, -1))
    mean = torch.autograd.grad(reinforce(choices.log_probability[0], rewards[arms], 0.5), logits)[0]
    one_hot = nn.functional.one_hot(arms, 3) - logits.detach().softmax(0)
    error = ((rewards[arms] - 0.5)[:, None] * one_hot).std(0) / math.sqrt(count)
    assert ((mean - exact).abs() <= 4 * error).all()


def policy(tmp_path, *more: str):
    config = load([*SMALL, "parts.controller=ln", f"out={tmp_path}", *more])
    experiment = build(config)
    task, model = experiment.task, experiment.model.train()
    data = task.dataset("reward")
    batch = task.prepare(task.collate([data[0, k] for k in range(8)], "reward"), "reward")
    return task, model, batch


def test_a_reward_is_the_accuracy_on_a_minibatch_of_its_own(tmp_path):
    task, model, batch = policy(tmp_path, "task.architectures=3", "task.entropy=0.01", "task.baseline_decay=0.9")
    before = {name: buffer.clone() for name, buffer in model.child.named_buffers()}
    torch.manual_seed(5)
    outcome = task.policy(model, batch, 1)
    torch.manual_seed(5)
    drawn = model.controller(torch.rand(3, number_of_choices(2), dtype=torch.float64))
    images, labels = batch
    assert images.shape[:2] == labels.shape == (8, 3)
    rewards = []
    for a, architecture in enumerate(drawn.architectures.tolist()):
        logits, _ = model.child(images[:, a], architecture)
        rewards.append((logits.argmax(1) == labels[:, a]).double().mean() + 0.01 * drawn.entropy[a])
    assert outcome.measures["reward"].item() == pytest.approx(torch.stack(rewards).mean().item(), abs=1e-6)
    expected = -(drawn.log_probability * torch.stack(rewards)).mean().item()  # the baseline begins at 0
    assert outcome.losses["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert model.rewards.average.item() == pytest.approx((1 - 0.9**3) * torch.stack(rewards).mean().item(), rel=1e-5)
    model, before = policy(tmp_path)[1], before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.child.named_buffers())


def test_rewards_leave_no_trace_in_the_child(tmp_path):
    task, model, batch = policy(tmp_path)
    statistics = RunningStatistics(model)
    before = {name: tensor.clone() for name, tensor in model.child.state_dict().items()}
    task.policy(model, batch, 1)
    statistics.collect()
    statistics.advance()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.child.state_dict().items())
    assert model.rewards.num_batches_tracked == 1 and model.training and model.child.dropout.training


def test_a_moving_average_is_the_mean_over_replicas_once_an_iteration():
    average = MovingAverage(0.25)
    statistics = RunningStatistics(nn.ModuleList([average]))
    for values in ([1.0, 3.0], [5.0]):
        for value in values:
            average.note(torch.tensor([value]))
            statistics.collect()
        statistics.advance()
    assert average.average.item() == pytest.approx(0.75 * 0.25 * 2 + 0.25 * 5)
    alone = MovingAverage(0.25)
    alone.note(torch.tensor([1.0, 3.0]))
    assert alone.average.item() == 0.5


def test_own_statistics_are_those_of_the_batch():
    norm = Normalizer(3, mean=["bn"], var=["bn"])
    model = nn.Sequential(norm, nn.Dropout(0.5)).eval()
    x = torch.randn(6, 3, 4, 4) * 3 + 2
    with own_statistics(model):
        y = model(x)
    torch.testing.assert_close(y, nn.functional.batch_norm(x, None, None, training=True), rtol=1e-5, atol=1e-5)
    assert norm.num_batches_tracked == 0 and not norm.training and norm.calls is None
    model.train()
    with own_statistics(model):
        torch.testing.assert_close(model(x), y)
    assert norm.training and model[1].training


# ---- data ----------------------------------------------------------------------------------------------------------


def test_the_training_split_is_parted(tmp_path):
    task = build(load([*SMALL, "parts.controller=ln", "data.fraction=1", "task.held_out=0.2"])).task
    whole = task.dataset("train").whole
    trained, rewarded = (set(task.dataset(split).indices.tolist()) for split in ("train", "valid"))
    assert not trained & rewarded and len(trained | rewarded) == len(whole) == 1438
    assert len(rewarded) == pytest.approx(0.2 * 1438, abs=5)
    image, label, number = task.dataset("valid")[None, 3]
    index = int(task.dataset("valid").indices[3])
    assert torch.equal(image, whole[None, index][0]) and label == whole[None, index][1] and number == 3
    assert torch.equal(task.dataset("valid")[4, 3][0], image)  # never augmented
    assert torch.equal(task.dataset("train")[4, 5][0], whole[4, int(task.dataset("train").indices[5])][0])
    taken = task.dataset("train").take_all([(4, 5), (4, 9)])
    assert all(torch.equal(one[0], task.dataset("train")[4, k][0]) for one, k in zip(taken, (5, 9), strict=True))


def test_minibatches_are_in_an_order_of_their_own():
    class Numbers:
        labels_N = None

        def __len__(self):
            return 12

        def __getitem__(self, key):
            assert key[0] is None
            return torch.tensor([float(key[1])]), key[1]

    kept, held = parted(Numbers(), 0.25)
    assert kept.tolist() == list(range(9)) and held.tolist() == [9, 10, 11]
    data = Minibatches(Part(Numbers(), kept, augmented=False), 3, seed=1)
    epochs = {epoch: torch.stack([data[epoch, k][1] for k in range(9)]) for epoch in (0, 1)}
    for labels in epochs.values():
        assert all(sorted(labels[:, a].tolist()) == list(range(9)) for a in range(3))
        assert len({tuple(labels[:, a].tolist()) for a in range(3)}) == 3
    assert not torch.equal(epochs[0], epochs[1])
    again = Minibatches(Part(Numbers(), kept, augmented=False), 3, seed=1)
    assert torch.equal(again[1, 4][1], epochs[1][4])


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_what_a_run_records_and_finds(tmp_path, capsys):
    given = [*SMALL, "parts.controller=sn_ln_gn", "epochs=2", f"out={tmp_path}", "task.evaluated=2"]
    assert main(["train", *given]) == 0
    folder = RunFolder.of(load(given))
    first, last = [row for row in read_jsonl(folder.metrics) if "val/accuracy" in row]
    measured = {"reward", "baseline", "entropy", "loss", "lr"}
    assert {f"train/controller/{name}" for name in measured} <= first.keys()
    assert 0 < last["val/entropy"] <= 8 * math.log(5) + 4 * (math.log(2) + math.log(3))
    assert {layer["part"] for layer in read_jsonl(folder.ratios)[-1]["layers"]} >= {"controller"}
    tested = folder.summary()["metrics"]["moving_average"]
    assert tested.keys() == {f"{of}{m}" for of in ("", "test/") for m in ("accuracy", "random_accuracy", "entropy")}
    assert main(["figure", "search", str(folder.path)]) == 0
    assert (folder.path / "search.png").stat().st_size > 1000
    capsys.readouterr()
    assert main(["predict", str(folder.path), f"out={tmp_path / 'found'}"]) == 0
    found = [json.loads(line) for line in (tmp_path / "found" / "architectures.jsonl").read_text().splitlines()]
    assert [row["accuracy"] for row in found] == sorted((row["accuracy"] for row in found), reverse=True)
    correct = sum(row["accuracy"] * row["samples"] for row in found) / sum(row["samples"] for row in found)
    assert correct == pytest.approx(tested["accuracy"], abs=0.02)
    assert {op for row in found for node in row["normal"] for op in node[1::2]} <= {*OPERATIONS}
    assert main(["export", str(folder.path)]) == 2
    assert "export cannot give a search" in capsys.readouterr().err

    session = open_session(folder)  # at each evaluation the same numbers, however large its batches' neighbours
    assert evaluate(session, "valid") == evaluate(session, "valid")


def drawn_and_random(folder: RunFolder, count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    """Accuracy on the held-out part, in percent, of so many architectures of the controller, and of nobody's."""
    session = open_session(folder)
    task, model = session.experiment.task, session.experiment.model
    model.load_state_dict(load_tensors(folder.weights))
    data, nodes = task.dataset("valid"), model.controller.nodes
    images, labels, _ = task.prepare(task.collate([data[None, k] for k in range(len(data))], "valid"), "valid")
    numbers = uniform(count, nodes, seed=1)
    found = []
    with torch.no_grad(), own_statistics(model.child):
        for architectures in (model.controller(numbers).architectures, uniform_architectures(numbers, nodes)):
            right = [
                (model.child(images, one)[0].argmax(1) == labels).double().mean() for one in architectures.tolist()
            ]
            found.append(100 * torch.stack(right))
    return found[0], found[1]


@pytest.mark.long
def test_what_it_finds_is_better_than_chance(tmp_path):
    """The digits protocol with LN: 50 drawn architectures are ahead of 50 random ones by three standard errors."""
    given = ["scale=digits_enas", "task=search", "norm=bn", "parts.controller=ln", "tracker=none", f"out={tmp_path}"]
    assert main(["train", *given]) == 0
    drawn, others = drawn_and_random(RunFolder.of(load(given)))
    error = math.sqrt((drawn.var() + others.var()).item() / len(drawn))
    assert (drawn.mean() - others.mean()).item() > 3 * error


# ---- optimizers and schedules that it needs ------------------------------------------------------------------------


def test_parameters_that_meet_their_first_gradient_late():
    """As torch's SGD that is not fused, whatever steps a parameter is left out of."""

    def train(optimizer, model) -> list[torch.Tensor]:
        draw = torch.Generator().manual_seed(2)
        for used in ((0,), (0, 1), (1,), (0, 2), (0, 1, 2)):
            x = torch.randn(4, 3, generator=draw)
            sum(model[k](x).square().mean() for k in used).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach() for p in model.parameters()]

    results = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))
        settings = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
        own = sgd(model, 1, lr=0.1, lr_batch=1, **settings)
        results.append(train(own if fused else torch.optim.SGD(model.parameters(), lr=0.1, **settings), model))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_cosines_begin_again():
    """ENAS's: 10 epochs, then 20, 40 and 80; from 0.05 to 0.0005, and a rate for a whole epoch."""
    rates = [
        0.05 * cosine_restarts(update, 1500, 10, first=10, times=2, least=0.01, each="epoch")
        for update in range(0, 1500)
    ]
    begin = [k for k, rate in enumerate(rates) if rate == pytest.approx(0.05)]
    assert [k for k in begin if k % 10 == 0] == [0, 100, 300, 700] and len(begin) == 40
    assert rates[10 * 20] == pytest.approx(0.0005 + 0.5 * (0.05 - 0.0005) * (1 + math.cos(math.pi * 10 / 20)))
    smooth = cosine_restarts(205, 1500, 10, first=10, least=0.01)
    assert smooth == pytest.approx(0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 10.5 / 20)))
    thirds = [cosine_restarts(u, 30, 10, first=1 / 3, times=1, least=0, unit="fraction") for u in range(30)]
    assert thirds[:10] == thirds[10:20] == thirds[20:]
    tiny = cosine_restarts(10**6, 10**7, 10, first=1e-300, times=1)  # an update at least, and an answer at once
    assert tiny == cosine_restarts(10**6, 10**7, 10, first=1, times=1, unit="iterations")
