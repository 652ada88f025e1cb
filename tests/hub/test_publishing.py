"""`vovnet publish`: what goes to the Hub, what never does, and what is said when something is in the way."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_folders import SECRETS, Made, edit_json, sum_anew
from local_hub import ALWAYS, Hub
from PIL import Image
from support import command, contents

import vovnet  # noqa: F401 (registers our models)
from vovnet.errors import InputError
from vovnet.hub import convert_checkpoint, publish, verify
from vovnet.hub.release import Description, describe

Copy = Callable[[Path], Path]
FILES = {"README.md", "SHA256SUMS", "config.json", "manifest.json", "model.safetensors"}
WRITING = {"POST", "PUT", "DELETE"}


def arrived(hub: Hub, name: str) -> dict[str, bytes]:
    """The repository's files, without what the Hub itself puts there."""
    return {path: data for path, data in hub.files(name).items() if path != ".gitattributes"}


def refused(*arguments: object, **options: Any) -> str:
    with pytest.raises(InputError) as error:
        publish(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value)


# What would go, and what goes.


def test_a_dry_run_says_all_and_asks_nobody(hub: Hub, run: Path) -> None:
    before = contents(run)
    outcome = command("publish", run, "me/detector", "--license", "apache-2.0")
    assert outcome.code == 0, outcome.err
    sizes = {name: int(size.replace(",", "")) for size, name in re.findall(r"^ +([\d,]+)  (\S+)$", outcome.out, re.M)}
    assert set(sizes) == FILES
    assert sizes["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert "nothing was uploaded" in outcome.out
    assert "--yes" in outcome.out
    assert "would be private" in outcome.out
    assert hub.log() == []
    assert hub.repositories() == set()
    assert contents(run) == before


@pytest.mark.usefixtures("token")
def test_what_arrives_is_what_was_shown(hub: Hub, run: Path) -> None:
    shown = publish(run, "me/detector", license="apache-2.0", train_data="my images")
    before = contents(run)
    done = publish(run, "me/detector", yes=True, license="apache-2.0", train_data="my images")
    assert done.files == shown.files
    files = arrived(hub, "me/detector")
    assert set(files) == FILES
    assert {name: len(data) for name, data in files.items()} == dict(shown.files)
    assert files["model.safetensors"] == before["model.safetensors"]
    assert json.loads(files["config.json"]) == json.loads(before["config.json"])
    assert b"my images" in files["README.md"]
    assert contents(run) == before
    assert shown.commit is None
    assert hub.head("me/detector") in str(done.commit)
    assert all(name in str(done) for name in FILES)


@pytest.mark.usefixtures("token")
def test_of_a_training_run_nothing_else_goes(hub: Hub, run: Path) -> None:
    """Neither optimizer states nor pickles, recipes, logs, hidden files or folders, nor a path in any text."""
    there = {path.name for path in run.iterdir()}
    assert there >= {"last.pt", "best.pt", "recipe.yaml", "metrics.jsonl", "old.pkl", ".env", "events"}
    publish(run, "me/detector", yes=True)
    files = arrived(hub, "me/detector")
    assert set(files) == FILES
    text = b"".join(data for name, data in files.items() if name != "model.safetensors").decode()
    header = files["model.safetensors"][8 : 8 + int.from_bytes(files["model.safetensors"][:8], "little")].decode()
    assert not [secret for secret in (*SECRETS, str(run)) if secret in text + header]
    sent = [seen.path for seen in hub.log() if seen.method in WRITING]
    assert not any(name in path for path in sent for name in there - FILES)


@pytest.mark.usefixtures("token")
def test_a_new_repository_is_private_unless_told(hub: Hub, slim: Made) -> None:
    for arguments, private in (([], True), (["--public"], False)):
        outcome = command("publish", slim.folder, f"me/{private}", "--yes", "--license", "other", *arguments)
        assert outcome.code == 0, outcome.err
        assert hub.is_private(f"me/{private}") is private
        assert f"is new and is {'private' if private else 'public'}" in outcome.out
        assert set(arrived(hub, f"me/{private}")) == FILES


@pytest.mark.usefixtures("token")
def test_one_commit_holds_it_all(hub: Hub, slim: Made) -> None:
    """So that nobody ever downloads half of it."""
    publish(slim.folder, "me/slim", yes=True, license="other")
    assert [seen.status for seen in hub.log() if "/commit/" in seen.path] == [200]


@pytest.mark.usefixtures("token")
def test_publishing_again_changes_what_changed(hub: Hub, slim: Made) -> None:
    publish(slim.folder, "me/slim", yes=True, license="other")
    first = arrived(hub, "me/slim")
    again = publish(slim.folder, "me/slim", yes=True, license="other", private=False)
    assert arrived(hub, "me/slim") == first
    assert hub.is_private("me/slim")
    assert "was there and is private" in str(again)
    publish(slim.folder, "me/slim", yes=True, license="other", architecture="vovnet")
    assert json.loads(arrived(hub, "me/slim")["config.json"])["architecture"] == "vovnet27_slim"
    assert verify("me/slim").outputs == 2


@pytest.mark.usefixtures("token")
def test_other_files_of_a_repository_stay_and_are_named(hub: Hub, slim: Made) -> None:
    hub.create("me/mine", {"notes.txt": b"mine", "README.md": b"old", "pytorch_model.bin": b"\x80"})
    outcome = command("publish", slim.folder, "me/mine", "--yes", "--license", "other")
    assert outcome.code == 0, outcome.err
    assert "left alone" in outcome.out
    assert "notes.txt" in outcome.out
    assert "pytorch_model.bin" in outcome.out
    files = hub.files("me/mine")
    assert files["notes.txt"] == b"mine"
    assert files["README.md"] != b"old"
    assert set(files) - {"notes.txt", "pytorch_model.bin", ".gitattributes"} == FILES


# Licences.


def converted_under(folder: Path, licence: str) -> Path:
    """Say of a converted folder that its file is under a licence."""
    edit_json(folder / "manifest.json", lambda manifest: manifest["source"].update(license=licence))
    sum_anew(folder)
    return folder


def test_converted_weights_need_a_licence(hub: Hub, slim: Made, copied: Copy) -> None:
    message = command("publish", slim.folder, "me/slim").refused("--license", slim.file.name)
    assert "--license other" in message
    folder = converted_under(copied(slim.folder), "cc-by-nc-4.0")
    assert "--license cc-by-nc-4.0" in command("publish", folder, "me/slim", "--yes").refused("--license")
    assert hub.log() == []


@pytest.mark.parametrize("licence", ["unknown", "not-stated"])
def test_weights_whose_licence_nobody_knows(licence: str, hub: Hub, slim: Made, copied: Copy) -> None:
    """The advice is an identifier that the Hub has, and whoever follows it is told what it means."""
    folder = converted_under(copied(slim.folder), licence)
    assert "--license other" in refused(folder, "me/slim")
    notes = publish(folder, "me/slim", license="other").notes
    assert any("warning" in note and "no licence" in note for note in notes)
    assert "--license other" in refused(folder, "me/slim", license="not-stated")
    assert hub.log() == []


def test_a_licence_that_contradicts_the_files_is_refused(hub: Hub, slim: Made, copied: Copy) -> None:
    folder = converted_under(copied(slim.folder), "cc-by-nc-4.0")
    for licence in ("apache-2.0", "other", "mit", "cc-by-4.0", "unknown"):
        assert "CC BY-NC 4.0" in refused(folder, "me/slim", license=licence, yes=True)
    assert hub.log() == []
    notes = publish(folder, "me/slim", license="cc-by-nc-4.0").notes
    assert any("warning" in note and "commercial" in note for note in notes)


def test_warnings(hub: Hub, slim: Made, run: Path) -> None:
    unknown = publish(slim.folder, "me/slim", license="other").notes
    assert any("warning" in note and "no licence" in note for note in unknown)
    own = publish(run, "me/run", license="cc-by-nc-sa-4.0").notes
    assert any("warning" in note and "commercial" in note for note in own)
    assert any("no --license" in note for note in publish(run, "me/run").notes)
    assert not any("warning" in note for note in publish(run, "me/run", license="apache-2.0").notes)


def test_a_real_v2_file_keeps_its_licence(hub: Hub, tmp_path: Path) -> None:
    """From the file itself to the card."""
    from vovnet.vovnet_v2 import published_v2_keys

    model = timm.create_model("ese_vovnet19b_slim_dw", num_classes=0)
    state = model.state_dict()
    torch.save({t: state[o] for t, o in published_v2_keys(model).items() if o in state}, tmp_path / "v2.pth")
    said = str(convert_checkpoint(tmp_path / "v2.pth", tmp_path / "out"))
    assert "CC BY-NC 4.0" in said
    assert "CC BY-NC 4.0" in refused(tmp_path / "out", "me/v2", license="apache-2.0")
    assert "license: cc-by-nc-4.0" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "out" / "manifest.json").unlink()
    (tmp_path / "out" / "SHA256SUMS").unlink()
    # The configuration still says it.
    assert "cc-by-nc-4.0" in refused(tmp_path / "out", "me/v2", license="apache-2.0").lower()


# What is refused before anyone is asked.


def test_a_folder_that_was_changed_since_its_conversion(hub: Hub, slim: Made, copied: Copy) -> None:
    folder = copied(slim.folder)
    edit_json(folder / "config.json", lambda config: config.update(global_pool="max"))
    assert "config.json has SHA-256" in refused(folder, "me/slim", yes=True, license="other")
    (folder / "SHA256SUMS").unlink()
    assert "has no SHA256SUMS" in refused(folder, "me/slim", yes=True, license="other")
    assert hub.log() == []


def test_a_card_that_was_changed_is_written_anew(hub: Hub, slim: Made, copied: Copy) -> None:
    """It is made of what the folder holds, so that it says what is true."""
    folder = copied(slim.folder)
    (folder / "README.md").write_text("# mine, see /home/somebody/secret")
    publish(folder, "me/slim", license="other")
    assert (folder / "README.md").read_text() == "# mine, see /home/somebody/secret"


def test_a_configuration_with_a_local_path(hub: Hub, slim: Made, copied: Copy) -> None:
    folder = copied(slim.folder)
    edit_json(folder / "config.json", lambda config: config["pretrained_cfg"].update(file="/home/me/a.pth"))
    sum_anew(folder)
    outcome = command("publish", folder, "me/slim", "--yes", "--license", "other")
    outcome.refused("/home/me/a.pth", "config.json")
    assert hub.log() == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_links_and_missing_files(name: str, hub: Hub, run: Path, copied: Copy, tmp_path: Path) -> None:
    folder = copied(run)
    (folder / name).rename(tmp_path / name)
    assert f"has no {name}" in refused(folder, "me/run", yes=True)
    (folder / name).symlink_to(tmp_path / name)
    assert "leads out of its folder" in refused(folder, "me/run", yes=True)
    assert hub.log() == []


@pytest.mark.parametrize(
    "name",
    [
        "slim",
        "me/",
        "/slim",
        "me/a/b",
        "me/it@main",
        "https://huggingface.co/me/it",
        "../it",
        "me/..",
        "me/a--b",
        "me/a b",
    ],
)
def test_names_that_the_hub_does_not_have(name: str, hub: Hub, slim: Made) -> None:
    for yes in (False, True):
        message = refused(slim.folder, name, license="other", yes=yes)
        assert name in message
        assert "card" not in message
    assert hub.log() == []


def test_an_unknown_setting(hub: Hub, slim: Made) -> None:
    command("publish", slim.folder, "me/it", "--license", "other", "--architecture", "x").refused("timm or vovnet")


def test_no_folder(hub: Hub, tmp_path: Path) -> None:
    command("publish", tmp_path / "absent", "me/it").refused("absent")
    command("publish", tmp_path, "me/it").refused("config.json")


# What the Hub refuses.


def failed(hub: Hub, folder: Path, name: str = "me/it") -> str:
    """The one line of error; and nothing that somebody could take for the model is on the Hub."""
    outcome = command("publish", folder, name, "--yes", "--license", "other")
    line = outcome.refused(name)
    assert "uploaded to" not in outcome.out
    assert name not in hub.repositories() or arrived(hub, name) == {}
    return line


def test_without_a_token(hub: Hub, slim: Made) -> None:
    assert "hf auth login" in failed(hub, slim.folder)
    assert hub.repositories() == set()


def test_with_a_wrong_token(hub: Hub, slim: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "HF_TOKEN" in failed(hub, slim.folder)
    assert hub.repositories() == set()


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("route", ["repos/create", "preupload", "lfs/objects/batch", "/commit/"])
def test_with_a_token_that_may_only_read(route: str, hub: Hub, slim: Made) -> None:
    hub.fail(route, ALWAYS, status=403)
    assert "HF_TOKEN" in failed(hub, slim.folder)


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("route", ["api/models/me/it$", "validate-yaml", "preupload", "batch", "_objects", "/commit/"])
def test_a_hub_in_trouble(route: str, hub: Hub, slim: Made) -> None:
    """And once it is well again, the same command does it."""
    hub.fail(route, ALWAYS, status=503)
    failed(hub, slim.folder)
    hub.reset()
    assert command("publish", slim.folder, "me/it", "--yes", "--license", "other").code == 0
    assert set(arrived(hub, "me/it")) == FILES


@pytest.mark.usefixtures("token")
def test_a_connection_that_breaks_off(hub: Hub, slim: Made) -> None:
    hub.drop("/commit/", ALWAYS)
    failed(hub, slim.folder)


@pytest.mark.usefixtures("token")
def test_a_repository_that_has_it_stays_as_it_is_when_the_upload_fails(hub: Hub, slim: Made) -> None:
    publish(slim.folder, "me/it", yes=True, license="other")
    before = hub.files("me/it"), hub.head("me/it")
    hub.fail("/commit/", ALWAYS, status=500)
    command("publish", slim.folder, "me/it", "--yes", "--license", "other", "--architecture", "vovnet").refused("me/it")
    assert (hub.files("me/it"), hub.head("me/it")) == before


@pytest.mark.usefixtures("token")
def test_no_hub_at_all(hub: Hub, slim: Made) -> None:
    hub.down()
    command("publish", slim.folder, "me/it", "--yes", "--license", "other").refused("me/it")
    hub.up()
    assert hub.repositories() == set()


def test_offline(hub: Hub, slim: Made, offline: Callable[[], None]) -> None:
    """A dry run works; an upload says why it does not."""
    offline()
    assert command("publish", slim.folder, "me/it", "--license", "other").code == 0
    command("publish", slim.folder, "me/it", "--yes", "--license", "other").refused("me/it", "HF_HUB_OFFLINE")
    assert hub.log() == []


@pytest.mark.usefixtures("token")
def test_a_card_that_the_hub_refuses(hub: Hub, run: Path) -> None:
    """Before a repository is made."""
    outcome = command("publish", run, "me/it", "--yes", "--license", "My Own")
    outcome.refused("me/it", "card", "license")
    assert hub.repositories() == set()


@pytest.mark.usefixtures("token")
def test_what_is_on_the_hub_is_not_denied(hub: Hub, slim: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit went through and the question after it did not: whoever reads the message must not be told that
    nothing is there."""
    from huggingface_hub import HfApi

    create = HfApi.create_commit

    def commit_then_fail(self: HfApi, *arguments: Any, **options: Any) -> Any:
        done = create(self, *arguments, **options)
        hub.fail("api/models/me/it", ALWAYS, status=503)
        return done

    monkeypatch.setattr(HfApi, "create_commit", commit_then_fail)
    outcome = command("publish", slim.folder, "me/it", "--yes", "--license", "other")
    assert set(arrived(hub, "me/it")) == FILES
    assert "no file of it is on the Hub" not in outcome.out + outcome.err
    assert "Traceback" not in outcome.err


# The drawn example, and the names of data.


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A photo whose name and EXIF data nobody may publish."""
    path = tmp_path / "secret name.jpg"
    exif = Image.Exif()
    exif[0x010E] = "at home"
    Image.effect_noise((1600, 900), 90).convert("RGB").save(path, exif=exif)
    return path


@pytest.mark.usefixtures("token")
def test_the_example_is_published_with_the_card(hub: Hub, run: Path, photo: Path, copied: Copy) -> None:
    publish(run, "me/it", yes=True, license="mit", example=photo, example_credit="Ann [x](y) <b>, CC BY 4.0")
    files = arrived(hub, "me/it")
    assert set(files) == {*FILES, "example.jpg"}
    with Image.open(io.BytesIO(files["example.jpg"])) as drawn:
        assert drawn.size == (1280, 720)
        assert not dict(drawn.getexif())
    assert b"at home" not in files["example.jpg"]
    card = files["README.md"].decode()
    assert "](example.jpg)" in card
    assert "secret name" not in card
    assert "<b>" not in card.replace("\\<b\\>", "")
    assert "example.jpg" in files["SHA256SUMS"].decode()
    assert verify("me/it").outputs
    publish(run, "me/without", yes=True, license="mit")
    assert "example.jpg" not in arrived(hub, "me/without")["README.md"].decode()


@pytest.mark.usefixtures("token")
def test_publishing_again_without_an_example_removes_it(hub: Hub, run: Path, photo: Path) -> None:
    """In the same commit: whoever takes an image back does not expect it to stay."""
    publish(run, "me/it", yes=True, license="mit", example=photo)
    before = len(hub.log())
    again = publish(run, "me/it", yes=True, license="mit")
    assert set(arrived(hub, "me/it")) == FILES
    assert any("example.jpg" in note and "removed" in note for note in again.notes)
    assert "left alone" not in str(again)
    assert [seen.status for seen in hub.log()[before:] if "/commit/" in seen.path] == [200]


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("sums", [None, b"\xff" + b"0" * 63 + b"  README.md\n"])
def test_an_example_of_somebody_else_stays(sums: bytes | None, hub: Hub, slim: Made) -> None:
    hub.create("me/mine", {"example.jpg": b"mine", **({} if sums is None else {"SHA256SUMS": sums})})
    done = publish(slim.folder, "me/mine", yes=True, license="other")
    assert hub.files("me/mine")["example.jpg"] == b"mine"
    assert any("left alone" in note and "example.jpg" in note for note in done.notes)


def test_a_damaged_example_is_found(run: Path, photo: Path, copied: Copy) -> None:
    folder = copied(run)
    describe(folder, folder, None, Description(example=photo))
    assert verify(folder).outputs
    (folder / "example.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"example\.jpg has SHA-256"):
        verify(folder)


def test_an_example_that_cannot_be_drawn(run: Path, slim: Made, photo: Path, tmp_path: Path) -> None:
    assert "absent.jpg" in refused(run, "me/it", license="mit", example=tmp_path / "absent.jpg")
    assert "classifier" in refused(slim.folder, "me/it", license="other", example=photo)
    assert "--example IMAGE" in refused(run, "me/it", license="mit", example_credit="Ann")


def test_data_without_metrics_is_noted(run: Path, slim: Made) -> None:
    assert any("--eval-data" in note for note in publish(slim.folder, "a/b", license="other", eval_data="x").notes)
    assert any("--eval-data" in note for note in publish(run, "a/b", license="mit", train_data="x").notes)
    assert not any("-data" in note for note in publish(run, "a/b", license="mit", eval_data="x").notes)
