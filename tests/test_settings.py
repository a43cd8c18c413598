from pathlib import Path

import pytest

from headwater.core.errors import InvalidError
from headwater.settings import load


def test_flags_beat_environment_beats_file_beats_default(tmp_path):
    """Each value says where it came from."""
    (tmp_path / "headwater.toml").write_text('port = 1\nhost = "::1"\nsources = 2\n')
    found = load(
        {"port": 3, "host": None}, environment={"HEADWATER_PORT": "2", "HEADWATER_SOURCES": "3"}, folder=tmp_path
    )

    assert (found.settings.port, found.settings.host, found.settings.sources) == (3, "::1", 3)
    assert found.sources["port"] == "flag"
    assert found.sources["sources"] == "environment HEADWATER_SOURCES"
    assert found.sources["host"] == "file headwater.toml"
    assert found.sources["home"] == "default"
    assert found.settings.home == Path(".headwater")


@pytest.mark.parametrize(
    "text",
    ["port = 70000", "port = true", 'port = "x"', "unknown = 1", "sources = 7", 'request_price = "-1"', "port ="],
)
def test_a_wrong_setting_is_refused_with_a_fix(text, tmp_path):
    """Nothing starts on a value nobody meant."""
    (tmp_path / "headwater.toml").write_text(text)
    with pytest.raises(InvalidError) as caught:
        load(environment={}, folder=tmp_path)

    assert caught.value.fix
