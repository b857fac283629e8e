"""The base image and other people's images."""

from __future__ import annotations

import io
import secrets
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest

from twin.emulation import images
from twin.emulation.images import ImageError

STATUS = """\
Package: shell
Status: install ok installed
Architecture: amd64
Version: 1.0
Depends: libc (>= 2.3), debconf | tool, virtual-thing

Package: libc
Status: install ok installed
Architecture: amd64
Version: 2.36

Package: real-thing
Status: install ok installed
Architecture: all
Version: 3
Provides: virtual-thing (= 3), other
Depends: libc:any

Package: removed
Status: deinstall ok config-files
Architecture: all
Version: 4
"""


def test_closure_follows_dependencies(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    found = images.installed_closure(["shell"], status)
    assert [(package.name, package.version) for package in found] == [
        ("libc", "2.36"),
        ("real-thing", "3"),
        ("shell", "1.0"),
    ]
    with pytest.raises(ImageError, match="base image: not installed on this host: apt-get install removed missing"):
        images.installed_closure(["removed", "missing"], status)
    with pytest.raises(ImageError, match="it is built on Debian or Ubuntu hosts"):
        images.installed_closure(["shell"], tmp_path / "nothing")


def test_a_changed_recipe_has_another_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = tmp_path / "status"
    status.write_text(STATUS)
    before = images.recipe_hash("host", images.installed_closure(["shell"], status))
    assert before == images.recipe_hash("host", images.installed_closure(["shell"], status))
    status.write_text(STATUS.replace("2.36", "2.37"))
    upgraded = images.recipe_hash("host", images.installed_closure(["shell"], status))
    monkeypatch.setattr(images, "BASE_PACKAGES", ("bash",))
    other = images.recipe_hash("host", images.installed_closure(["shell"], status))
    assert len({before, upgraded, other}) == 3


def test_sources_of_both_formats(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text("# comment\ndeb http://one/debian bookworm main\ndeb-src http://one/x y z\n")
    (tmp_path / "sources.list.d/two.sources").write_text(
        "Types: deb deb-src\nURIs: http://two/debian\nSuites: bookworm bookworm-updates\nComponents: main\n contrib\n"
        "Signed-By: /usr/share/keyrings/k.gpg\n\n# off\nTypes: deb\nURIs: http://three\nSuites: x\nEnabled: no\n"
    )
    assert images.apt_sources(tmp_path) == [
        "deb http://one/debian bookworm main",
        "deb [signed-by=/usr/share/keyrings/k.gpg] http://two/debian bookworm main contrib",
        "deb [signed-by=/usr/share/keyrings/k.gpg] http://two/debian bookworm-updates main contrib",
    ]


@pytest.mark.emulation
@pytest.mark.usefixtures("emulation_host")
class TestThisHost:
    @pytest.fixture
    def foreign(self) -> Iterator[str]:
        """An image with no program but a static nothing: there is no Python in it."""
        name = f"twinbed-test/{secrets.token_hex(4)}:latest"
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            info = tarfile.TarInfo("etc/motd")
            info.size = 3
            tar.addfile(info, io.BytesIO(b"hi\n"))
        client = docker.APIClient()
        client.import_image_from_stream(iter([archive.getvalue()]), repository=name.partition(":")[0], tag="latest")
        yield name
        client.remove_image(name, force=True)
        client.close()

    def test_base_image_is_built_once_and_runs_python(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            names = set(pool.map(lambda _: images.ensure_base_image(), range(2)))
        assert len(names) == 1
        (name,) = names
        assert name.startswith("twinbed/base:")
        said: list[str] = []
        assert images.ensure_base_image(said.append) == name
        assert said == []
        assert images.check_image(name, python=True).startswith("sha256:")

    def test_base_image_is_rebuilt_for_another_recipe(self, monkeypatch: pytest.MonkeyPatch) -> None:
        repository = f"twinbed-test/{secrets.token_hex(4)}"
        monkeypatch.setattr(images, "BASE_REPOSITORY", repository)
        monkeypatch.setattr(images, "BASE_PACKAGES", ("coreutils", "bash"))
        said: list[str] = []
        name = images.ensure_base_image(said.append)
        client = docker.APIClient()
        try:
            assert said[-1] == f"built {name}"
            assert client.inspect_image(name)["Config"]["Cmd"] == ["sleep", "infinity"]
            with pytest.raises(ImageError, match=f"image {name}: no python3 in it"):
                images.check_image(name, python=True)
        finally:
            client.remove_image(name, force=True)
            client.close()

    def test_image_without_python(self, foreign: str) -> None:
        assert images.check_image(foreign)
        with pytest.raises(ImageError, match=f"image {foreign}: no python3 in it") as raised:
            images.check_image(foreign, python=True)
        assert "\n" not in str(raised.value)

    def test_image_that_is_not_here(self) -> None:
        with pytest.raises(
            ImageError, match="image no/such:one: not on this host; build it, or get it with: docker pull"
        ):
            images.check_image("no/such:one")

    def test_docker_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
        with pytest.raises(ImageError, match="Docker does not answer") as raised:
            images.check_image("any")
        assert "\n" not in str(raised.value)
