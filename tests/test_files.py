"""Files by the names that annotations have for them, and images by their kind."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from detseg.data.files import FileFinder, image_files, is_image, list_files, list_images

NFC, NFD = (unicodedata.normalize(form, "Übung.jpg") for form in ("NFC", "NFD"))


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    ("files", "name", "found"),
    [
        (["a.jpg"], "a.jpg", "a.jpg"),
        (["sub/a.jpg"], "sub/a.jpg", "sub/a.jpg"),
        (["sub/a.jpg"], "sub\\a.jpg", "sub/a.jpg"),
        (["sub/a.jpg"], "./sub/a.jpg", "sub/a.jpg"),
        (["a.jpg"], "../images/a.jpg", "a.jpg"),
        (["a.jpg"], "D:\\photos\\2024\\a.jpg", "a.jpg"),
        (["2024/a.jpg", "2025/a.jpg"], "D:\\photos\\2024\\a.jpg", "2024/a.jpg"),
        (["train/a.jpg", "val/a.jpg"], "/x/y/images/val/a.jpg", "val/a.jpg"),
        (["images/train/a.jpg", "images/val/a.jpg"], "val/a.jpg", "images/val/a.jpg"),
        (["a.jpg", "sub/a.jpg"], "/elsewhere/a.jpg", "a.jpg"),
        (["sub/deep/a.jpg"], "a.jpg", "sub/deep/a.jpg"),
        (["IMG_1.JPG"], "img_1.jpg", "IMG_1.JPG"),
        (["Sub/IMG_1.JPG"], "sub/IMG_1.jpg", "Sub/IMG_1.JPG"),
        (["a.jpg", "A.jpg"], "A.jpg", "A.jpg"),
        ([NFD], NFC, NFD),
        ([NFC], NFD, NFC),
        ([NFC, NFD], NFD, NFD),
        ([NFD, unicodedata.normalize("NFC", "übung.JPG")], NFC, NFD),
        (["a b.jpg"], "  a b.jpg ", "a b.jpg"),
        (["a b.jpg"], "a%20b.jpg", "a b.jpg"),
        (["100%.jpg"], "100%.jpg", "100%.jpg"),
        (["a b.jpg"], "https://host/images/a%20b.jpg?size=large", "a b.jpg"),
        (["a.png"], "a.jpg", "a.png"),
        (["x/a.jpeg"], "a", "x/a.jpeg"),
        (["a.1.png"], "a.1", "a.1.png"),
        ([" a.jpg"], " a.jpg", " a.jpg"),
    ],
)
def test_a_name_finds_its_file(tmp_path: Path, files: list[str], name: str, found: str) -> None:
    assert FileFinder(tree(tmp_path, *files)).find(name) == found


@pytest.mark.parametrize(
    ("files", "name", "reason"),
    [
        (["a.jpg"], "b.jpg", "there is no file 'b.jpg' in "),
        (["a.jpg"], "", "there is no file '' in "),
        (["a.jpg"], "..", "there is no file '..' in "),
        (["a.txt"], "a.jpg", "there is no file 'a.jpg' in "),
        (["x/a.jpg", "y/a.jpg"], "a.jpg", "'a.jpg' may be any of x/a.jpg, y/a.jpg in "),
        (["a.jpg", "A.jpg"], "a.JPG", "'a.JPG' may be any of A.jpg, a.jpg in "),
        (["a.png", "a.jpg"], "a.tif", "'a.tif' may be any of a.jpg, a.png in "),
        ([f"{i}/a.jpg" for i in range(4)], "a.jpg", "any of 0/a.jpg, 1/a.jpg, 2/a.jpg, ... in "),
    ],
)
def test_a_name_of_no_file_or_of_several_finds_none(
    tmp_path: Path, files: list[str], name: str, reason: str
) -> None:
    finder = FileFinder(tree(tmp_path, *files))
    assert finder.find(name) is None
    assert reason + str(tmp_path) in finder.why_not(name)
    assert finder.notes == ()


def test_what_was_found_otherwise_is_counted(tmp_path: Path) -> None:
    finder = FileFinder(tree(tmp_path, "a.JPG", "B.jpg", "s/c.jpg", "d.jpg", "e.png", NFD))
    for name in ("a.jpg", "b.jpg", "c.jpg", ".\\d.jpg", "d.jpg", "e.jpg", NFC):
        assert finder.find(name) is not None
    assert finder.notes == (
        "2 files listed in another case than the file's name, as 'a.jpg' for a.JPG",
        "1 file found in another folder than it is listed in, as 'c.jpg' for s/c.jpg",
        "1 file listed with backslashes, blanks, ./ or %20 that the file does not have, as '.\\\\d.jpg' for d.jpg",
        "1 file listed with another suffix than the file has, as 'e.jpg' for e.png",
        f"1 file listed in another Unicode form than the file's name, as {NFC!r} for {NFD}",
    )


def test_a_finder_of_images_passes_over_what_lies_beside_them(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "a.xml", "labels/a.txt")
    assert FileFinder(tmp_path, images_only=True).find("a") == "a.jpg"
    assert FileFinder(tmp_path, images_only=True).find("a.xml") is None
    assert FileFinder(tmp_path).find("a.xml") == "a.xml"


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for ask in (list_files, list_images, image_files, lambda folder: FileFinder(folder).find("a")):
        with pytest.raises(FileNotFoundError, match=r"no folder .*gone"):
            ask(tmp_path / "gone")


def test_hidden_files_and_those_of_file_managers_are_passed_over(tmp_path: Path) -> None:
    tree(tmp_path, "a.jpg", "._a.jpg", ".cache/b.jpg", "__MACOSX/c.jpg", "@eaDir/d.jpg", "s/e.jpg", "Thumbs.db")
    assert list_images(tmp_path, recursive=True) == ["a.jpg", "s/e.jpg"]
    assert list_images(tmp_path) == ["a.jpg"]
    assert list_files(tmp_path) == ["Thumbs.db", "a.jpg"]


def test_linked_folders_are_followed_and_a_circle_ends(tmp_path: Path) -> None:
    tree(tmp_path, "data/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    names = list_images(tmp_path / "data", recursive=True)
    assert {"a.jpg", "more/b.jpg"} <= set(names)
    assert len(names) <= 4


def test_images_are_known_by_their_kind(tmp_path: Path) -> None:
    pictures = ["b.jfif", "c.JPE", "d.gif", "e.avif", "f.jp2", "g.ppm", "h.mpo", "i.TIF", "j.webp", "k.bmp", "l.heic"]
    tree(tmp_path, *pictures, "b.xml", "c.txt", "d.json", "desktop.ini", "x/m.png")
    assert image_files(tmp_path) == ({name.partition(".")[0]: name for name in pictures}, ())
    assert image_files(tmp_path, recursive=True).names["x/m"] == "x/m.png"
    assert not is_image("readme")


def test_two_images_of_one_name_are_a_fault(tmp_path: Path) -> None:
    names, faults = image_files(tree(tmp_path, "a.jpg", "a.png", "b.jpg", "a.xml", "s/a.jpg"), recursive=True)
    assert names == {"b": "b.jpg", "s/a": "s/a.jpg"}
    assert [str(fault) for fault in faults] == [
        f"{tmp_path / 'a'}: there are several images of this name, a.jpg and a.png; keep one"]
