"""Patches that an evaluation is given as files: their names, how they come to its size, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from mat.cli.errors import UserError
from mat.robustness.given import read_given
from mat.robustness.patch_pictures import decode_patch, encode_patch, resample

SHAPE = (6, 4, 3)


def patches_of(*shape, seed=0):
    """Random patches."""
    return np.random.default_rng(seed).random(shape, np.float32)


def given(path, patch_shape=SHAPE):
    """The one patch in a file, at the size of an evaluation, and what was done to it."""
    [(_, patch)], told = read_given([path], patch_shape)
    assert patch.dtype == np.float32
    assert patch.shape == patch_shape
    return patch, told


def test_files_of_every_kind_give_their_patches_names_of_their_own(tmp_path):
    patches = patches_of(2, *SHAPE)
    np.savez(tmp_path / "patches.npz", patches=patches, targets=[3, 1], step_sizes=[0.1, 0.2])  # a bank
    np.savez(tmp_path / "universal_patches.npz", patches=patches, names=["white_box-a", "b"], accuracies=[0.1, 0.2])
    np.save(tmp_path / "many.npy", patches.astype(np.float64))
    np.save(tmp_path / "one.npy", np.round(255 * patches[1]).astype(np.uint8))
    (tmp_path / "a").mkdir()
    for directory in (tmp_path, tmp_path / "a"):
        Image.fromarray(np.round(255 * patches[0]).astype(np.uint8)).save(directory / "my patch\n.PNG")
    files = ["patches.npz", "universal_patches.npz", "many.npy", "one.npy", "my patch\n.PNG", "a/my patch\n.PNG"]
    found, told = read_given([str(tmp_path / file) for file in files], SHAPE)
    names = ["patches-0", "patches-1", "white_box-a", "b", "many-0", "many-1", "one", "my patch", "my patch_2"]
    assert [name for name, _ in found] == [f"given-{name}" for name in names]
    assert told == "9 of 6x4"
    for (name, patch), expected in zip(found, [*patches, *patches, *patches, patches[1], patches[0], patches[0]], strict=True):
        np.testing.assert_allclose(patch, expected, atol=0.5 / 255 + 1e-6 if name[6:8] in ("on", "my") else 0)
    assert read_given([], SHAPE) == ([], "")


def test_the_contact_sheet_of_an_export_is_no_patch(tmp_path):
    for name in ("a.png", "contact_sheet.png"):
        Image.fromarray(np.round(255 * patches_of(*SHAPE)).astype(np.uint8)).save(tmp_path / name)
    [(name, _)], told = read_given(sorted(tmp_path.iterdir()), SHAPE)
    assert (name, told) == ("given-a", "1 of 6x4, 1 contact sheet, passed over")


# Sizes.


@pytest.mark.parametrize("size", [(60, 40), (300, 200), (301, 201), (6, 4), (7, 5)])
def test_enlarged_pixels_are_taken_back_exactly(tmp_path, size):
    pixels = np.round(255 * patches_of(*SHAPE)).astype(np.uint8)
    enlarged = Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST)
    enlarged.save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.asarray(enlarged))
    for file in ("a.png", "a.npy"):
        patch, told = given(tmp_path / file)
        np.testing.assert_array_equal(np.round(255 * patch), pixels)
        assert told == ("1 of 6x4" if size == (6, 4) else f"1 of {size[0]}x{size[1]} taken back to its 6x4 cells")


@pytest.mark.parametrize("rounding", [0.0, 0.5, 0.999])
def test_programs_that_enlarge_round_in_different_ways(tmp_path, rounding):
    pixels = patches_of(24, 24, 3)
    cells = ((np.arange(300) + rounding) * 24 / 300).astype(int)
    np.save(tmp_path / "a.npy", pixels[cells][:, cells])
    np.testing.assert_array_equal(given(tmp_path / "a.npy", (24, 24, 3))[0], pixels)


@pytest.mark.parametrize("size", [(24, 16), (13, 9)])
def test_pictures_of_other_pixels_are_not_taken_for_enlarged_ones(tmp_path, size):
    cells = patches_of(*SHAPE)
    for name, picture in {"other": patches_of(*size, 3), "painted on": resample(cells, *size)}.items():
        if name == "painted on":
            picture[0, 0] = 0.5
        np.save(tmp_path / f"{name}.npy", picture)
        assert "shrunk" in given(tmp_path / f"{name}.npy")[1]


def test_other_pictures_are_shrunk_with_anti_aliasing(tmp_path):
    stripes = np.zeros((60, 40, 3), np.float32)
    stripes[:, ::2] = 1  # finer than the patch can show
    np.save(tmp_path / "stripes.npy", stripes)
    patch, told = given(tmp_path / "stripes.npy")
    np.testing.assert_allclose(patch[:, 1:-1], 0.5, atol=0.02)
    assert told == "1 of 60x40 shrunk with anti-aliasing to 6x4"


def test_small_patches_are_enlarged_smoothly(tmp_path):
    np.save(tmp_path / "small.npy", np.float32([[[0, 0.5, 1]] * 2, [[0.2, 0.5, 1]] * 2, [[1, 0.5, 0]] * 2]))
    patch, told = given(tmp_path / "small.npy")
    assert told == "1 of 3x2 enlarged, bicubic, to 6x4"
    np.testing.assert_allclose(patch[..., 1], 0.5, atol=1e-6)
    assert 0 <= patch.min() <= patch.max() <= 1  # bicubic goes beyond both
    assert np.all(np.diff(patch[:, 0, 0])[1:] > 0)


# Exact values.


@pytest.mark.parametrize(("shape", "size"), [((12, 12, 3), 300), ((24, 24, 3), 300), ((5, 7, 3), 300), ((12, 12, 3), 12), ((1, 1, 3), 9)])
def test_exported_patches_come_back_to_the_bit(tmp_path, shape, size):
    patch = patches_of(*shape)
    (tmp_path / "a.png").write_bytes(encode_patch(patch, size=size, dpi=150))
    with Image.open(tmp_path / "a.png") as picture:
        assert max(picture.size) == size
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.02)
    found, told = given(tmp_path / "a.png", shape)
    np.testing.assert_array_equal(found, patch)
    assert told == f"1 of {shape[0]}x{shape[1]} as exported"


def test_exact_values_count_only_for_the_pixels_that_they_round_to(tmp_path):
    def saved(picture, **options):
        picture.save(tmp_path / "b.png", **options)
        return decode_patch(tmp_path / "b.png")

    patch = patches_of(*SHAPE)
    rounded = np.round(255 * patch) / 255
    picture = Image.open(io.BytesIO(encode_patch(patch, size=60, dpi=300)))
    texts = picture_info(picture)
    assert saved(picture, pnginfo=texts)[1]
    without, is_exact = saved(picture)
    assert not is_exact
    np.testing.assert_allclose(resample(without, 6, 4), rounded, atol=1e-6)
    for painted in (picture.resize((4, 6), Image.Resampling.NEAREST).rotate(180), picture.resize((2, 3), Image.Resampling.NEAREST)):
        found, is_exact = saved(painted, pnginfo=texts)
        assert not is_exact
        np.testing.assert_allclose(found, np.asarray(painted) / 255, atol=1e-6)


def picture_info(picture):
    """The text chunks of a PNG, to be written again."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in picture.text.items():
        info.add_text(key, value)
    return info


@pytest.mark.parametrize("text", ["", "6 4", "6 4 !", "6 4 AAAA", "-6 4 AAAA", "a b AAAA", "6 4 AAAA AAAA"])
def test_damaged_exact_values_do_not_count(tmp_path, text):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("mat-patch", text)
    Image.new("RGB", (4, 6), (255, 0, 51)).save(tmp_path / "a.png", pnginfo=info)
    patch, is_exact = decode_patch(tmp_path / "a.png")
    assert not is_exact
    np.testing.assert_allclose(patch, np.broadcast_to([1, 0, 0.2], SHAPE), atol=1e-6)


# What is refused.

FAULTY = {
    "a.npy: the values go from 0.0 to 200.0": np.linspace(0, 200, 72).reshape(SHAPE),
    "b.npy: the values go from nan to nan": np.full(SHAPE, np.nan),
    "c.npy: the values are of int64": np.ones(SHAPE, np.int64),
    "d.npy: the array has the shape [3, 6, 4]; numpy.moveaxis(array, -3, -1) moves": np.zeros((3, 6, 4)),
    "e.npy: the array has the shape [6, 4]": np.zeros((6, 4)),
    "f.npy: the array has the shape [0, 6, 4, 3]": np.zeros((0, 6, 4, 3)),
    "g.npy: Object arrays cannot be loaded": np.array([None]),
    "h.npz: it has no array patches": {"targets": [1]},
    "i.npz: the values go from -1.0 to -1.0": {"patches": -np.ones((1, *SHAPE)), "names": ["a"]},
    "j.png: it is transparent in places": Image.new("RGBA", (4, 6), (9, 9, 9, 254)),
    "k.png: it has 4098x4097 pixels, and at most 4096x4096 are read": Image.new("L", (4098, 4097)),
    "l.png: text": b"a picture",
    "m.png: a PNG image, damaged or cut short": encode_patch(np.zeros(SHAPE, np.float32), size=60, dpi=9)[:-40],
    "n.npz: ": b"PK\3\4 damaged",
    "o.png: of 6x6 pixels, which are not the proportions of patch_shape: [6, 4, 3]. Crop it to 6:4": Image.new("RGB", (6, 6)),
    "p.npy: of 60x42 pixels, which": np.zeros((60, 42, 3)),
}


@pytest.mark.parametrize("message", FAULTY)
def test_files_without_patches_are_refused_by_name(tmp_path, message):
    name, content = message.partition(":")[0], FAULTY[message]
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path)
    Image.new("RGB", (4, 6)).save(tmp_path / "good.png")
    with pytest.raises(UserError) as caught:
        read_given([tmp_path / "good.png", path], SHAPE)
    told = str(caught.value).replace("no patches (--patches): ", "").replace(" (--patches)", "")
    assert told.startswith(f"{tmp_path}/{message}")
    assert any(way_out in told for way_out in ("Give a PNG", "Crop it"))
    assert "\n" not in told


def test_an_opaque_alpha_channel_is_none(tmp_path):
    Image.new("RGBA", (4, 6), (255, 0, 51, 255)).save(tmp_path / "a.png")
    np.testing.assert_allclose(given(tmp_path / "a.png")[0], np.broadcast_to([1, 0, 0.2], SHAPE), atol=1e-6)
