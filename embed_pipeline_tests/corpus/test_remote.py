"""Documents that lie elsewhere: fsspec's memory, a web server on a socket, and a server that speaks S3."""

from __future__ import annotations

import functools
import http.server
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from embed_pipeline.corpus import batches as batches_module
from embed_pipeline.corpus import files as remote
from embed_pipeline.corpus.batches import ScanLimits, cut_batches, find_new_batches, load_batch, load_batches
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.files import CorpusError, is_present, read_document, scan_documents
from embed_pipeline.corpus.sample import SampleError, write_sample
from embed_pipeline.settings import Corpus, Settings, SettingsError, load_settings

URL = "memory://bucket/docs"


def _put(**files: str) -> None:
    system = fsspec.filesystem("memory")
    for name, text in files.items():
        system.pipe_file(f"/bucket/docs/{name.replace('__', '/').replace('_', '.')}", text.encode())


def _settings(tmp_path: Path, url: str = URL, **corpus: object) -> Settings:
    return Settings.model_validate({"paths": {"documents": url, "store": tmp_path / "store"}, "corpus": corpus})


@pytest.fixture(autouse=True)
def _empty_memory() -> Iterator[None]:
    system = fsspec.filesystem("memory")
    yield
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_files_are_listed_below_the_prefix_and_hidden_ones_passed_over() -> None:
    _put(b_md="b", deep__er__a_TXT="aa", photo_png="x", _hidden_md="x", _dir__a_md="x")
    fsspec.filesystem("memory").pipe_file("/bucket/docs-too/other.md", b"x")
    scan = scan_documents(URL, Corpus())
    assert [(file.path, file.size) for file in scan.files] == [("b.md", 1), ("deep/er/a.TXT", 2)]
    assert scan.skipped == {".png (not in corpus.suffixes)": 1}
    assert abs(scan.files[0].mtime_ns / 1e9 - time.time()) < 60


def test_new_changed_and_deleted_files_are_batches_and_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    _put(a_md="# A\n\nOne.", b_md="# B\n\nTwo.", c_md="# C\n\nThree.")
    (first,), _ = cut_batches(settings)
    assert read_documents(first, settings)[0].select("path", "title").rows() == [
        ("a.md", "A"),
        ("b.md", "B"),
        ("c.md", "C"),
    ]
    with monkeypatch.context() as patched:
        patched.setattr(batches_module, "read_document", lambda *_: pytest.fail("it was opened"))
        assert cut_batches(settings)[0] == []
    _put(b_md="# B\n\nTwo, changed.", d_md="# D")
    fsspec.filesystem("memory").rm("/bucket/docs/a.md")
    (second,), _ = cut_batches(settings)
    assert ([file.path for file in second.files], second.deleted) == (["b.md", "d.md"], ("a.md",))
    assert load_batches(settings.paths.root) == [first, second]
    assert not is_present(URL, "a.md")
    assert is_present(URL, "b.md")


def test_a_young_file_waits_and_a_look_ends_in_time(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    _put(a_md="a", b_md="b")
    assert find_new_batches(settings, ScanLimits(settle_seconds=3600)).unsettled == 2
    look = find_new_batches(settings, ScanLimits(seconds=0))
    assert ([file.path for batch in look.batches for file in batch.files], look.waiting) == (["a.md"], 1)


def test_the_limits_on_count_and_size_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _put(a_md="x" * 100, b_md="short", c_md="y")
    with pytest.raises(CorpusError, match=r"memory://bucket/docs holds over corpus\.max_files = 2 entries"):
        scan_documents(URL, Corpus(max_files=2))
    assert len(read_document(URL, "a.md", 10)) == 11
    settings = _settings(tmp_path, max_file_bytes=50)
    (batch,), _ = cut_batches(settings)
    assert read_documents(batch, settings)[1].select("path", "reason").rows() == [("a.md", "too_large")]


def test_a_file_that_is_gone_after_the_look_is_set_aside_and_a_store_that_is_gone_stops_the_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(tmp_path)
    _put(a_md="a", b_md="b")
    (batch,), _ = cut_batches(settings)
    fsspec.filesystem("memory").rm("/bucket/docs/a.md")
    assert read_documents(batch, settings)[1].select("path", "reason").rows() == [("a.md", "unreadable")]

    def break_off(*_: object, **__: object) -> None:
        raise TimeoutError("no answer from https://u:secret@host/?sig=secret")

    _put(c_md="c")
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", break_off)
    with pytest.raises(CorpusError, match=r"documents at memory://bucket/docs cannot be read \(TimeoutError") as caught:
        cut_batches(settings)
    assert "secret" not in str(caught.value)
    assert len(load_batches(settings.paths.root)) == 1


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("memory://nowhere/here", "documents at memory://nowhere/here do not exist; set paths.documents"),
        ("nosuch://bucket", r"documents at nosuch://bucket cannot be read \(ValueError: Protocol not known: nosuch\)"),
    ],
)
def test_an_address_that_cannot_be_listed_is_named(url: str, says: str) -> None:
    with pytest.raises(CorpusError, match=says):
        scan_documents(url, Corpus())


def test_a_driver_that_is_missing_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(CorpusError, match=r"nothing here reads gs://; install embed-pipeline\[gcs\]"):
        scan_documents("gs://bucket/docs", Corpus())


@pytest.mark.parametrize("value", ["https://u:secret@host/x", "az://box/x?sig=secret", "zip://a.zip::s3://box"])
def test_an_address_with_a_secret_or_a_chain_is_refused_without_telling_it(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBED_PIPELINE_PATHS__DOCUMENTS", value)
    with pytest.raises(SettingsError, match=r"paths\.documents .* must be a plain address") as caught:
        load_settings()
    assert "secret" not in str(caught.value)


def test_a_file_address_is_a_folder_with_its_safety_rules(tmp_path: Path) -> None:
    settings = _settings(tmp_path, f"file://{tmp_path}")
    assert settings.paths.documents == tmp_path
    with pytest.raises(SampleError, match="samples are written into a folder"):
        write_sample("python", URL)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder, and the address under which a web server lists it."""
    folder = tmp_path / "web"
    folder.mkdir()
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_web_server_that_lists_its_files_is_read(web: tuple[str, Path], tmp_path: Path) -> None:
    url, folder = web
    (folder / "deep").mkdir()
    (folder / "a.md").write_text("# A\n\nOne.")
    (folder / "deep" / "b c.md").write_text("# B\n\nTwo.")
    (folder / "deep" / "photo.png").write_bytes(b"x")
    settings = _settings(tmp_path, url)
    (batch,), scan = cut_batches(settings)
    assert scan.skipped == {".png (not in corpus.suffixes)": 1}
    assert abs(scan.files[0].mtime_ns / 1e9 - time.time()) < 60
    assert read_documents(batch, settings)[0]["title"].to_list() == ["A", "B"]
    assert cut_batches(settings)[0] == []
    (folder / "a.md").write_text("# A\n\nOne and a half.")
    (batch,), _ = cut_batches(settings)
    assert [file.path for file in batch.files] == ["a.md"]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3."""
    pytest.importorskip("s3fs", reason="s3fs (extra s3) is not installed")
    server_module = pytest.importorskip("moto.server", reason="moto[server] (extra dev) is not installed")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patched.setenv("AWS_ACCESS_KEY_ID", "key")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-key")
        patched.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield "s3://shelf/docs"
    server.stop()


@pytest.mark.slow
def test_s3_is_listed_by_the_page_and_read(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_LISTING_PAGE", 3)
    system = fsspec.filesystem("s3")
    system.mkdir("shelf")
    for name in ("a.md", "deep/b.md", "c.md", "deep/er/d.txt", "e.png", ".hidden/f.md"):
        system.pipe_file(f"shelf/docs/{name}", f"# {name}\n\nText.".encode())
    system.pipe_file("shelf/docs/empty/", b"")
    system.pipe_file("shelf/docs-too/z.md", b"no")
    settings = _settings(tmp_path, s3)
    (batch,), scan = cut_batches(settings)
    assert [file.path for file in batch.files] == ["a.md", "c.md", "deep/b.md", "deep/er/d.txt"]
    assert scan.skipped == {".png (not in corpus.suffixes)": 1}
    assert all(file.version and file.mtime_ns for file in batch.files)
    assert read_documents(batch, settings)[0]["title"].to_list() == ["a.md", "c.md", "deep/b.md", "deep/er/d.txt"]
    assert cut_batches(settings)[0] == []
    # The same size in the same second: the entity tag tells.
    system.pipe_file("shelf/docs/a.md", b"# A.md\n\nText.")
    (second,), _ = cut_batches(settings)
    assert [file.path for file in second.files] == ["a.md"]
    with pytest.raises(CorpusError, match=r"over corpus\.max_files = 2"):
        scan_documents(s3, Corpus(max_files=2))


def test_a_bucket_that_is_none_is_named_and_no_secret_told(s3: str) -> None:
    with pytest.raises(CorpusError, match="documents at s3://nowhere/docs do not exist; set paths.documents") as caught:
        scan_documents("s3://nowhere/docs", Corpus())
    assert "secret-of-the-key" not in str(caught.value)


class _Redirecting(http.server.BaseHTTPRequestHandler):
    """A listing of documents, some of which are redirected; ``inner`` is another server."""

    inner = ""

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        places = {"elsewhere.md": f"{self.inner}/secret", "moved.md": "/docs/real.md", "scheme.md": "//127.0.0.1:1/x"}
        places["twice.md"] = "/docs/elsewhere.md"
        if self.path.startswith("/gone"):
            places[name] = f"{self.inner}/listing"
        if name in places:
            self.send_response(302)
            self.send_header("Location", places[name])
            self.end_headers()
            return
        links = "".join(f'<a href="{path}">x</a>' for path in [*places, "real.md"])
        body = links.encode() if self.path.rstrip("/") == "/docs" else b"# Real"
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server calls it

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_web_server_cannot_have_another_host_read(tmp_path: Path) -> None:
    asked: list[str] = []

    class Inner(_Redirecting):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        do_HEAD = do_GET  # noqa: N815 - as above

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Inner) as inner:
        threading.Thread(target=inner.serve_forever, daemon=True).start()

        class Outer(_Redirecting):
            pass

        Outer.inner = f"http://127.0.0.1:{inner.server_port}"
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Outer) as outer:
            threading.Thread(target=outer.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{outer.server_port}"
            scan = scan_documents(f"{address}/docs", Corpus())
            assert [file.path for file in scan.files] == ["moved.md", "real.md"]
            assert scan.skipped["redirected to another host"] == 3
            assert read_document(f"{address}/docs", "moved.md", 100) == b"# Real"
            for name in ("elsewhere.md", "twice.md", "scheme.md"):
                with pytest.raises(OSError, match=name):
                    read_document(f"{address}/docs", name, 100)
            with pytest.raises(CorpusError, match="only its own host is read"):
                scan_documents(f"{address}/gone", Corpus())
            outer.shutdown()
        inner.shutdown()
    assert asked == []


@pytest.mark.parametrize(
    "name", ["../../escape/evil", "pwned", "00001-0a1b2c3d/../x", "00001-0A1B2C3D", "", "00001-0a1b2c3d\n", "/etc/x"]
)
def test_what_is_no_name_of_a_batch_is_refused_before_a_path_is_made_of_it(tmp_path: Path, name: str) -> None:
    manifest = tmp_path / "escape" / "evil.json"
    manifest.parent.mkdir()
    manifest.write_text('{"files": [], "deleted": []}')
    (tmp_path / "store" / "batches").mkdir(parents=True)
    with pytest.raises(CorpusError, match="is no name of a document batch, such as 00001-0a1b2c3d"):
        load_batch(tmp_path / "store", name)
