"""What the core asks of a task. Classification is one; no other needs a change of the engine.

A task says what its network is, what it learns from, and how it is judged; the engine does the rest. Nothing here
knows of runs, ranks or files. What a task does not say has a default, so that most say little.

Shapes: R replicas of N samples pass through the model together as rows (R*N, ...), replica by replica.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset, default_collate

from normlab.data.published import absent, is_absent
from normlab.dynamics.receptive_field import NormSite, trace
from normlab.errors import UserError
from normlab.norm.layer import Normalizer
from normlab.norm.weight import Convolution
from normlab.schema import bind
from normlab.tasks.mean import Mean

Batch = Any  # tensors, or lists, tuples and dicts of them
Metric = Any  # of torchmetrics, or as one of it: it adds up over ranks by itself


class Declaration(NamedTuple):
    """The normalizer and the weight parametrization of a part of the model; None for none."""

    norm: Callable[[int], nn.Module] | None
    weight: Callable[[nn.Module], None] | None


class Outcome(NamedTuple):
    """Of a training pass, each value (R,): a replica's own mean, over whatever it has to count."""

    losses: dict[str, Tensor]  # the objective is the mean over replicas of their sum
    measures: dict[str, Tensor]  # reported beside them


Objective = Callable[[nn.Module, Batch, int], Outcome]


@dataclass(frozen=True)
class Phase:
    """What is trained on what. Most tasks have one; several take turns in each epoch, each with its own optimizer.

    Attributes:
        name: under which settings (phases.NAME.optim=...), checkpoints and records know it.
        objective: as Task.losses: (model, batch, replicas) -> Outcome.
        parts: the parts of the model that it trains; empty: all of it.
        split: of the data.
        updates: in each epoch; None: as many as the split has samples for.
        skips: whether a pass may leave out some of its parameters (sampled paths).
    """

    name: str
    objective: Objective
    parts: tuple[str, ...] = ()
    split: str = "train"
    updates: int | None = None
    skips: bool = False


class Evaluation(NamedTuple):
    """What belongs together when a split is evaluated.

    Attributes:
        at_once: samples that pass through the network together; 1: each at a size of its own.
        order: of the samples' indices, so that alike ones come together; None: as they are.
    """

    at_once: int = 256
    order: Sequence[int] | None = None


class Traced(NamedTuple):
    """What torch.export is given.

    Attributes:
        inputs: the positional arguments of what is exported, with two samples or more.
        dynamic: for each, nested as they are, the axes whose size may differ, as {0: "batch"}; None: the first axis of
            every tensor.
        module: what of the model is exported, by its name; "" is all of it.
    """

    inputs: tuple[Any, ...]
    dynamic: tuple[Any, ...] | None = None
    module: str = ""


class Task(ABC):
    """A model, its data, its losses and its test protocol. A target's positional parameters: model, data, seed.

    Class attributes, written as literals, since they are read without importing the task:

    Attributes:
        metrics: name -> {"words": ..., "unit": "%", "better": "higher" or "lower", "decimals": 2, "complement": name of
            the metric that it is 100 less, "per_class": False}; all but the words have these defaults. A run is known
            by the first. Values by class are called NAME.CLASS.
        takes: {"model": [kind, ...], "data": [kind, ...]}, of the kinds that files of conf/ state as `_kind_`; a group
            that is not listed, or a file that states none, is not checked.
    """

    metrics: ClassVar[Mapping[str, Mapping[str, Any]]]
    takes: ClassVar[Mapping[str, Sequence[str]]] = {}

    def __init__(self, model: Mapping[str, Any], data: Mapping[str, Any], seed: int) -> None:
        """
        Args:
            model, data: settings of the network and of the dataset; schema.bind makes something to call of each.
            seed: of what the data draw.
        """
        self.model, self.data, self.seed = model, data, seed
        self._splits: dict[str, Any] = {}

    # ---- what every task says ------------------------------------------------------------------------------------

    @abstractmethod
    def build(self, declared: Mapping[str, Declaration]) -> nn.Module:
        """The model as its authors normalize it; the engine converts its parts.

        Args:
            declared: what each part asks for, for builders that must know (`norm_layer=`): an FPN has another
                convolution without a norm than with one. What is normalized by it already stays as it is.
        """

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, replicas: int) -> Outcome:
        """A training pass of `replicas` stacked replicas. Call `model` itself, not its parts: DDP watches it."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Predictions by the test protocol, as `update` takes them: without more, {metric: (rows,) of each sample}."""

    # ---- what most tasks leave as it is --------------------------------------------------------------------------

    def dataset(self, split: str) -> Dataset:
        """A map from (epoch, index) to a sample, with a length; epoch None: no augmentation."""
        if split not in self._splits:
            if is_absent(self.data):
                self._splits[split] = absent(self.data, split)
            else:
                self._splits[split] = bind(self.data)(split, self.seed)
        return self._splits[split]

    def of_data(self, name: str, what: str) -> Any:
        """An attribute of the training data. Raises UserError, saying what it is, where they lack it."""
        dataset = self.dataset("train")
        if not hasattr(dataset, name):
            raise UserError(
                f"data._target_={self.data['_target_']}: a dataset for {type(self).__name__.lower()} has the attribute "
                f"{name}, {what}"
            )
        return getattr(dataset, name)

    def normalized(self, images: Tensor, split: str) -> Tensor:
        """Images as numbers, by the mean and std of their dataset where they are bytes."""
        return self.dataset(split).normalize(images) if images.dtype == torch.uint8 else images  # type: ignore[attr-defined]

    def groups(self, split: str) -> Sequence[int] | None:
        """Of each training sample a number: those of a replica have the same, as far as they come out even; None: any.

        Images wider than tall among themselves need less padding.
        """
        return None

    def metric(self, split: str) -> Metric:
        """A fresh metric for a pass over a split, as of torchmetrics: without more, means over samples."""
        return nn.ModuleDict({name: Mean() for name, info in self.metrics.items() if "complement" not in info})

    def update(self, metric: Metric, predictions: Any, batch: Batch, indices: Sequence[int]) -> None:
        """Count a batch's predictions; `indices` are those of its samples in the split."""
        for name, values in predictions.items():
            metric[name].update(values)

    def write(self, predicted: Iterable[tuple[Any, Sequence[int]]], split: str, folder: Path) -> int:
        """Write predictions as files; returns their number. Without more, it has none.

        `predicted` gives those of each pass of an evaluation, with the indices of their samples.
        """
        raise NotImplementedError

    def pictures(self, batch: Batch, predictions: Any) -> Sequence[Mapping[str, Tensor]]:
        """Of each sample of an evaluation's pass what a figure shows; without more, nothing is kept.

        {"image": (C, H, W)} and, as far as there are: "truth" and "predicted", class maps (H, W); or of each the
        instances, as "truth.boxes" (M, 4), "truth.labels" (M,) and "truth.masks" (M, H, W).
        """
        return ()

    def results(self, metric: Metric) -> dict[str, float]:
        """What was counted on all ranks, by the names of `metrics`, in their units; not those with a complement."""
        return {name: mean.compute().item() for name, mean in metric.items()}

    traced: str = ""  # the module whose layers have receptive fields: behind a pooling, all see the whole image
    splits: Mapping[str, str] = {"train": "training", "val": "validation"}  # name -> in words
    tested: tuple[str, ...] = ("val",)  # evaluated at a run's end; the first one on the way, too

    @property
    def parts(self) -> Mapping[str, str | Sequence[str]]:
        """Names of the model's parts -> prefix of their modules, or several.

        A module is of the part with the longest prefix that fits it. Where several have that one, the first are
        aliases ("head" of box and mask): their settings count unless the last has its own.
        """
        return {"backbone": ""}

    @property
    def phases(self) -> Sequence[Phase]:
        """In the order in which they take turns."""
        return (Phase("train", self.losses),)

    def helpers(self) -> Sequence[nn.Module]:
        """Networks that losses use and that are no part of the model: placed on the device, never trained, in no
        checkpoint. The same objects at each call."""
        return ()

    def collate(self, samples: Sequence[Any], split: str) -> Batch:
        """The samples of one replica, or of an evaluation's pass."""
        return default_collate(list(samples))

    def stack(self, batches: Sequence[Batch]) -> Batch | None:
        """Batches of several replicas as one; None where no single pass gives each replica exactly its own result."""
        if len(batches) == 1:
            return batches[0]  # a copy of a batch takes as long as decoding an image or two
        return tree_map(lambda *tensors: torch.cat(tensors), *batches)

    def prepare(self, batch: Batch, split: str) -> Batch:
        """Work on a whole batch, on its device, before it is used: images in bytes become numbers."""
        return batch

    def evaluation(self, split: str) -> Evaluation:
        """How a split passes through the network when it is evaluated."""
        return Evaluation()

    @property
    def example(self) -> tuple[int, ...] | None:
        """Shape of one sample's input, to trace receptive fields; None where they make no sense."""
        return None

    def sites(self, model: nn.Module) -> list[NormSite]:
        """The norm layers that have a receptive field, in the order of the network; the engine adds the others."""
        if self.example is None:
            return []
        inside = model.get_submodule(self.traced)
        sites = trace(inside, self.example, lambda module: isinstance(module, Normalizer))
        return [replace(site, name=f"{self.traced}.{site.name}".lstrip(".")) for site in sites]

    weighs: Any = Convolution  # the types of the layers that `weight` is for

    def weighted(self, name: str) -> bool:
        """Whether `weight` is for this layer: those that a norm follows take it, those that predict do not."""
        return True

    def frozen(self, name: str) -> bool:
        """Whether a parameter stays as it began, beyond what parts.NAME.frozen says."""
        return False

    def initial(self, state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
        """What `init` names, made to fit the model (filters inflated to three dimensions); taken by name and shape.

        Helpers take theirs here, which is left out of the rest.
        """
        return state

    def exported(self, batch: Batch) -> Traced:
        """What `normlab export` traces the model with, of a batch of validation samples. Raises UserError to refuse."""
        first = next((leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)), None)
        if first is None:
            raise UserError(f"task {type(self).__name__}: it does not say what export is to trace")
        return Traced((first,))


def by_replica(values: Tensor, replicas: int) -> Tensor:
    """The mean of each replica, (R,), of values (R*N, ...) that all count alike."""
    return values.view(replicas, -1).mean(1)
