"""A library that another user could have put into the cache is not loaded."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from normlab.norm.kernels import place as kernels_place
from normlab.norm.kernels.place import safe_place

USE = "from normlab.norm import kernels; print(kernels.status()['cpu'])"


@pytest.fixture
def kept(tmp_path) -> Path:
    """A library in a cache of one's own; the folders above it are pytest's, which are the user's alone, in /tmp."""
    library = tmp_path / "above" / "cache" / "native.so"
    library.parent.mkdir(parents=True, mode=0o755)
    library.write_bytes(b"")
    library.chmod(0o755)
    return library


def test_a_place_of_ones_own_is_taken(kept, tmp_path):
    assert safe_place(kept, tmp_path) == kept
    kept.unlink()
    assert safe_place(kept, tmp_path) == kept  # not there yet


@pytest.mark.parametrize("mode", [0o757, 0o777])
@pytest.mark.parametrize("place", ["native.so", "cache", "above"])
def test_what_others_can_write_to_is_not(kept, tmp_path, caplog, place, mode):
    opened = {"native.so": kept, "cache": kept.parent, "above": kept.parent.parent}[place]
    opened.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert safe_place(kept, tmp_path) == tmp_path / kept.name
    (said,) = [record.getMessage() for record in caplog.records]
    assert str(opened) in said and "NORMLAB_CACHE=FOLDER" in said and "\n" not in said


def test_the_sticky_bit_protects_what_lies_below_alone(kept, tmp_path):
    kept.parent.parent.chmod(0o1777)
    assert safe_place(kept, tmp_path) == kept
    kept.parent.chmod(0o1777)  # anyone could have put the file there
    assert safe_place(kept, tmp_path) == tmp_path / kept.name


def test_a_group_counts_unless_it_is_the_users_own(kept, tmp_path, monkeypatch):
    kept.parent.chmod(0o775)
    monkeypatch.setattr(kernels_place, "_is_private", lambda group: False)
    assert safe_place(kept, tmp_path) == tmp_path / kept.name
    monkeypatch.setattr(kernels_place, "_is_private", lambda group: True)
    assert safe_place(kept, tmp_path) == kept


@pytest.mark.parametrize("place", ["file", "folder"])
def test_what_another_user_owns_is_not(kept, tmp_path, monkeypatch, place):
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(kept if place == "file" else kept.parent, 12345, 12345)
    assert safe_place(kept, tmp_path) == tmp_path / kept.name


def test_a_link_in_an_open_folder_is_not_followed(kept, tmp_path):
    opened = tmp_path / "open"
    opened.mkdir()
    (opened / "link").symlink_to(kept.parent)
    opened.chmod(0o777)
    assert safe_place(opened / "link" / kept.name, tmp_path) == tmp_path / kept.name


def test_kernels_are_there_all_the_same_and_leave_nothing_behind(tmp_path):
    shared, temporary = tmp_path / "shared", tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o777)
    temporary.mkdir()
    environment = os.environ | {"NORMLAB_CACHE": str(shared), "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True, timeout=200)
    if done.stdout.startswith("torch operations: no C++"):
        pytest.skip("there is no compiler here")
    assert done.stdout == "C++ kernels\n"
    assert done.stderr.count("can be written to by other users") == 1
    assert not list(shared.iterdir()) and not list(temporary.glob("normlab-*"))
