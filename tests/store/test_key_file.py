import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from headwater.core.errors import HeadwaterError, InvalidError, MissingError, RefusedError, UpstreamError
from headwater.store.key_file import load_or_create_signer, load_signer


@pytest.fixture
def path(tmp_path):
    return tmp_path / "operator.key"


def test_a_key_is_made_once_and_then_loaded(path):
    """The first start makes a key that only its owner can read; every later one finds the same."""
    made = load_or_create_signer(path, random_bytes=lambda size: bytes([7] * size))

    assert path.read_text() == "07" * 32 + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_signer(path).address == load_or_create_signer(path).address == made.address
    assert [item.name for item in path.parent.iterdir()] == ["operator.key"]


def test_the_mode_does_not_depend_on_the_umask(path):
    """Even under a umask that gives everything to everybody the file is the owner's alone."""
    before = os.umask(0)
    try:
        load_or_create_signer(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_that_start_together_get_the_same_key(path):
    """The first file linked in wins; nobody signs with a key that is not on the disk."""
    with ThreadPoolExecutor(8) as pool:
        addresses = {signer.address for signer in pool.map(load_or_create_signer, [path] * 8)}
    assert addresses == {load_signer(path).address}


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o602])
def test_a_key_others_can_reach_is_refused(path, mode):
    """A key that leaked is not used on, and the message says what to do."""
    load_or_create_signer(path)
    path.chmod(mode)
    for load in (load_signer, load_or_create_signer):
        with pytest.raises(RefusedError, match=f"{mode:04o}") as refusal:
            load(path)
        assert refusal.value.code == "key_file_exposed"
        assert "chmod 600" in refusal.value.fix


@pytest.mark.parametrize(
    "content", ["", "07" * 31, "07" * 33, "0x" + "07" * 31, "AB" * 32, "07" * 32 + "\n\n", "zz" * 32]
)
def test_a_damaged_key_is_refused_and_left_alone(path, content):
    """Anything but 64 hex digits is refused; the content is neither shown nor replaced."""
    path.touch(0o600)
    path.write_text(content)
    with pytest.raises(InvalidError) as refusal:
        load_or_create_signer(path)
    assert refusal.value.code == "key_file_invalid"
    assert not content or content not in str(refusal.value)
    assert path.read_text() == content


def test_a_number_that_is_no_key_is_refused(path):
    """Zero is no key: neither read from a file nor written to one."""
    path.touch(0o600)
    path.write_text("00" * 32)
    with pytest.raises(InvalidError) as refusal:
        load_signer(path)
    assert refusal.value.code == "signing_key_invalid"
    path.unlink()
    with pytest.raises(InvalidError):
        load_or_create_signer(path, random_bytes=bytes)
    assert not path.exists()


def test_what_is_no_plain_file_is_refused(path, tmp_path):
    """Links, folders and pipes are refused at once, without waiting."""
    load_or_create_signer(tmp_path / "real.key")
    path.symlink_to(tmp_path / "real.key")
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe, 0o600)
    folder.mkdir(mode=0o700)
    for other in (path, pipe, folder):
        with pytest.raises(RefusedError) as refusal:
            load_signer(other)
        assert refusal.value.code == "key_file_refused"


def test_a_missing_key_or_folder_is_said_so(path, tmp_path):
    """Loading makes nothing, and a folder that is not there ends in a clean error."""
    with pytest.raises(MissingError):
        load_signer(path)
    assert not path.exists()
    with pytest.raises(UpstreamError) as refusal:
        load_or_create_signer(tmp_path / "nowhere" / "operator.key")
    assert refusal.value.code == "key_file_not_written"
    assert isinstance(refusal.value, HeadwaterError)
