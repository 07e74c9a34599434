"""normlab.batch_average, in the loops of others: SWA and EMA, whose weights no training pass has run with."""

import copy
import subprocess
import sys

import pytest
import torch
from norm_files import build, images, randomize
from reference import pixel_set_statistics
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import normlab
from normlab.errors import UserError

C = 4
AVERAGES = {"swa": None, "ema": get_ema_multi_avg_fn(0.9)}


def network(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, C, 3), build(name, C), nn.Dropout(0.0), nn.Conv2d(C, C, 1), build("gn", C))


def loader(shape: tuple[int, ...] = (4, 3, 6, 5), batches: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(images(*shape, seed=seed, dtype=torch.float32), torch.zeros(len(shape))) for seed in range(batches)]


def trained(name: str, average: str) -> AveragedModel:
    """Averaged over weights that are far apart."""
    model = network(name)
    averaged = AveragedModel(model, multi_avg_fn=AVERAGES[average])
    for step in range(3):
        randomize(model, seed=step)
        model(loader()[0][0])
        averaged.update_parameters(model)
    return averaged


def over(model: nn.Module, layer: str, scope: str) -> tuple[Tensor, Tensor]:
    """The means over the batches of a scope's mean and variance, in float64, of what reaches a layer."""
    exact, seen = copy.deepcopy(model).double().train(), []
    exact.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(2)))
    for x, _ in loader():
        exact(x.double())
    found = [pixel_set_statistics(x, scope) for x in seen]
    return tuple(torch.stack([of[k][0, :, 0] for of in found]).mean(0) for k in (0, 1))


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize(("name", "scopes"), [("bn", ["bn", "bn"]), ("sn", ["bn", "bn"]), ("hn", ["bn", "en"])])
def test_statistics_are_the_means_over_the_loader(name, scopes, average):
    averaged = trained(name, average)
    stale = copy.deepcopy(averaged)
    update_bn(loader(), averaged)
    torch.testing.assert_close(averaged.state_dict(), stale.state_dict(), rtol=0, atol=0)  # why there is another
    normlab.batch_average(averaged, loader())
    layer = averaged.get_submodule("module.1")
    mean_C, var_C = (over(stale, "module.1", scope)[k] for k, scope in enumerate(scopes))
    running_var = layer.running_var if scopes[1] == "bn" else layer.running_var_en.expand(C)
    torch.testing.assert_close(layer.running_mean.double(), mean_C, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(running_var.double(), var_C, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(averaged.parameters(), stale.parameters(), strict=True))
    assert layer.calls is None and layer.num_batches_tracked == stale.module[1].num_batches_tracked


def test_means_are_those_of_update_bn():
    """And its variances up to their correction, which is another for batches of this size."""
    ours, theirs = network("bn"), network("bn")
    theirs[1] = nn.BatchNorm2d(C)
    theirs.load_state_dict(ours.state_dict())
    normlab.batch_average(ours, loader())
    update_bn(loader(), theirs)
    size = 4 * 4 * 3
    torch.testing.assert_close(ours[1].running_mean, theirs[1].running_mean)
    torch.testing.assert_close(ours[1].running_var * size / (size - 1), theirs[1].running_var)


def test_modes_stay_as_they_were_module_by_module():
    model = network("sn").train()
    model[3].eval()
    before = [module.training for module in model.modules()]
    normlab.batch_average(model, loader())
    assert [module.training for module in model.modules()] == before


def test_a_layer_alone_and_batches_of_another_kind():
    layer = build("bn", C)
    x = images(4, C, 3, 2, dtype=torch.float32)
    normlab.batch_average(layer, [{"image": x}], lambda batch: layer(batch["image"]))
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)))
    normlab.batch_average(layer, [x + 1])
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2, 3)) + 1)


def test_nothing_to_measure_and_nothing_to_measure_by():
    normlab.batch_average(network("gn"), iter([]))  # as update_bn does for a model without batch norms
    with pytest.raises(UserError, match="no layer that keeps statistics saw a batch; the loader may be empty"):
        normlab.batch_average(network("bn"), [])


def test_the_package_itself_imports_no_torch():
    code = "import normlab, sys; print('torch' in sys.modules, hasattr(normlab, 'batch_averages'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
