"""Scopes by hand-counted numbers; pooled statistics against the pixels themselves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_files import images
from reference import pixel_set_statistics

from normlab.errors import UserError
from normlab.norm.layer import Normalizer
from normlab.norm.normalize import moments
from normlab.norm.pooling import pool, spread, statistics
from normlab.norm.scopes import Scope, check_declaration, fit_groups


@pytest.mark.parametrize(
    ("groups", "num_channels", "fitted"),
    [
        (32, 64, 32),
        (32, 256, 32),
        (32, 32, 16),
        (32, 48, 24),
        (8, 12, 6),
        (2, 6, 2),
        (32, 7, 1),
        (32, 1, 1),
        (1, 9, 1),
    ],
)
def test_groups_that_fit_divide_the_channels_and_hold_two_or_more(groups, num_channels, fitted):
    assert fit_groups(groups, num_channels) == fitted


@pytest.mark.parametrize(
    ("name", "width", "size"),  # of a replica of 2 samples, 8 channels, 15 positions
    [
        ("in", 8, 15),
        ("ln", 1, 120),
        ("gn", 4, 30),
        ("gn2", 2, 60),
        ("bn", 8, 30),
        ("en", 4, 60),
        ("en1", 1, 240),
    ],
)
def test_width_and_size_of_a_pixel_set(name, width, size):
    scope = Scope.parse(name, groups=4, num_channels=8)
    assert scope.width(8) == width
    assert scope.size(2, 8, 15) == size
    assert scope.across_samples == (name[:2] in ("bn", "en"))


@pytest.mark.parametrize("name", ["xn", "", "bn2", "ln1", "in3", "gn0", "gn-1", "gn 4", "GN"])
def test_a_name_that_is_no_scope_is_refused_in_one_line(name):
    with pytest.raises(UserError, match="does not exist; allowed: in, ln, bn, gn, en") as error:
        Scope.parse(name, 1, 8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("mean", "var", "options", "said"),
    [
        ([], ["bn"], {}, r"norm.mean=\[\] names no scope"),
        (["bn"], [], {}, r"norm.var=\[\] names no scope"),
        (["bn", "bn"], ["bn"], {}, "twice"),
        (["bn"], ["qn"], {}, "'qn' does not exist"),
        (["in", "bn"], ["bn", "in"], {"tied": True}, "norm.tied=true needs the same scopes"),
    ],
)
def test_a_declaration_without_meaning_is_refused(mean, var, options, said):
    with pytest.raises(UserError, match=said):
        check_declaration(mean, var, **options)


def test_pooling_by_hand():
    t_RNC = torch.tensor([[[1.0, 3.0, 5.0, 7.0], [3.0, 5.0, 7.0, 9.0]]])  # 1 replica, 2 samples, 4 channels
    scopes = [Scope.parse(name, 2, 4) for name in ("in", "ln", "gn", "bn", "en", "en1")]
    pooled = {scope.name: pool(t_RNC, scope.across_samples, scope.width(4)).tolist() for scope in scopes}
    assert pooled == {
        "in": t_RNC.tolist(),
        "ln": [[[4.0], [6.0]]],
        "gn": [[[2.0, 6.0], [4.0, 8.0]]],
        "bn": [[[2.0, 4.0, 6.0, 8.0]]],
        "en": [[[3.0, 7.0]]],
        "en1": [[[5.0]]],
    }
    assert spread(torch.tensor([[[3.0, 7.0]]]), 4).tolist() == [[[3.0, 3.0, 7.0, 7.0]]]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    name=st.sampled_from(["in", "ln", "bn", "gn1", "gn2", "gn3", "en1", "en2", "en3"]),
    replicas=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 4), st.sampled_from([6, 12]), st.integers(1, 4)),
)
def test_pooled_moments_are_those_of_the_pixel_set(name, replicas, shape):
    N, C, L = shape
    x_NCL = images(replicas * N, C, L) + 10
    scope = Scope.parse(name, 1, C)
    mean_RNC, var_RNC = (t.view(replicas, N, C) for t in moments(x_NCL))
    pooled = statistics(mean_RNC, var_RNC, scope.across_samples, scope.width(C))
    blocks = x_NCL.split(N)
    direct = [torch.cat(parts) for parts in zip(*(pixel_set_statistics(b, name) for b in blocks), strict=True)]
    for compact, expected_NC1 in zip(pooled, direct, strict=True):
        assert compact.shape[-1] == scope.width(C)
        per_channel = spread(compact, C).expand(replicas, N, C).reshape(-1, C, 1)
        torch.testing.assert_close(per_channel, expected_NC1, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_channels", "groups"), [(64, 2), (2048, 64), (48, 1), (16, 1)])
def test_groups_of_so_many_channels(num_channels, groups):
    """SN-TPAMI's GN in segmentation: 32 channels in each group, as torch's GroupNorm of C / 32 groups."""
    layer = Normalizer(num_channels, mean=["gn"], var=["gn"], groups=32, group_channels=32)
    x = torch.randn(2, num_channels, 3, 3)
    torch.testing.assert_close(layer(x), torch.nn.functional.group_norm(x, groups))
