"""`upload_repo`: what is sent to the Hub, and that a failure costs nothing but the upload."""

import huggingface_hub
import pytest

from orthrus_mlx import OutputError
from orthrus_mlx.checkpoint.read import inspect
from orthrus_mlx.convert import convert


class Api:
    """Stands in for `HfApi` and keeps what it was asked."""

    calls: list
    error: Exception | None

    def create_repo(self, **options):
        self.calls.append(("create_repo", options))
        if self.error:
            raise self.error

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    Api.calls, Api.error = [], None
    return Api


def test_upload(api, tiny16_dir, tmp_path):
    folder = convert(tiny16_dir, tmp_path / "out", upload_repo="me/tiny-mlx")
    (create, created), (upload, uploaded) = api.calls
    assert (create, upload) == ("create_repo", "upload_folder")
    assert created == {"repo_id": "me/tiny-mlx", "repo_type": "model", "exist_ok": True}
    assert uploaded["repo_id"] == "me/tiny-mlx"
    assert uploaded["folder_path"] == str(folder)
    assert 'load("me/tiny-mlx")' in (folder / "README.md").read_text()


def test_failed_upload_keeps_the_folder(api, tiny16_dir, tmp_path):
    api.error = OSError("403 Forbidden")
    with pytest.raises(OutputError, match=r"complete in .*out, but uploading .* 403 Forbidden"):
        convert(tiny16_dir, tmp_path / "out", upload_repo="me/tiny-mlx")
    inspect(tmp_path / "out")


def test_no_upload_unless_asked(api, tiny16_dir, tmp_path):
    convert(tiny16_dir, tmp_path / "out")
    assert api.calls == []
