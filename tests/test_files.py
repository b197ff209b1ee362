"""A file that is written in one step is old or new after an exception and after a kill, and on the disk at the end."""

import multiprocessing
import os
from pathlib import Path

import pytest

from secateur import files
from secateur.cli import _folder
from secateur.files import drop_partials, flush_files, replacing


def test_the_old_file_stays_until_the_block_is_through(tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("old")
    with replacing(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert partial.parent == tmp_path, "from another file system it could not be renamed"
    assert target.read_text() == "new"


def _stopped_while_writing(target: Path) -> None:
    with replacing(target) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt


def test_after_an_exception_the_old_file_is_there_and_nothing_beside_it(tmp_path):
    target = tmp_path / "notes.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _stopped_while_writing(target)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert target.read_text() == "old"


def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    target, seen, flush = tmp_path / "notes.txt", [], files.flush

    def noting(path):
        seen.append((path, target.exists()))
        flush(path)

    monkeypatch.setattr(files, "flush", noting)
    with replacing(target) as partial:
        partial.write_text("new")
    assert seen == [(partial, False), (tmp_path, True)]


def _killed_while_writing(target: Path) -> None:
    with replacing(target) as partial:
        partial.write_text("half")
        os._exit(1)


def test_what_a_killed_process_left_is_dropped_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("notes.txt", ".hidden", "own.partial")]
    for path in kept:
        path.write_text("old")
    process = multiprocessing.get_context("fork").Process(target=_killed_while_writing, args=(kept[0],))
    process.start()
    process.join()
    assert len(list(tmp_path.iterdir())) == 4
    assert kept[0].read_text() == "old"
    drop_partials(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


def test_files_of_a_folder_are_flushed_before_the_folder(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    (tmp_path / "inner").mkdir()
    seen = []
    monkeypatch.setattr(files, "flush", seen.append)
    flush_files(tmp_path)
    assert seen == [tmp_path / "a", tmp_path]


def test_what_a_command_wrote_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Checkpoints go right after, and with them all that the folder could be made from once more."""
    target, seen = tmp_path / "small", []
    for module in (files, _folder):
        monkeypatch.setattr(module, "flush", lambda path: seen.append((path.name, target.exists())))
    with _folder.new_folder(target) as partial:
        (partial / "model").touch()
    assert seen == [("model", False), (partial.name, False), (tmp_path.name, True)]
