"""explore.html in Chromium: what it shows, by mouse, finger and keyboard."""

import dataclasses
import re
import shutil

import numpy as np
import pytest
from etils import epath

from convit_jax.analysis import locality
from convit_jax.analysis.attention import central_patch
from convit_jax.analysis.exploration import FLOOR, write_exploration
from convit_jax.analysis.findings import Findings
from convit_jax.analysis.image_attention import attention_in_images
from convit_jax.data.images.preprocessing import Preprocessing
from convit_jax.models import create_model

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, PROGRAMS)), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: pip install -r requirements-dev.txt"
)

SMALL = {"num_classes": 7, "patch_size": 8, "head_dim": 4, "mlp_ratio": 1.0}
NAMES = ("one.jpg", "two.jpg")


@pytest.fixture(scope="module")
def models():
    """A ConViT on 3 x 5 patches whose last layer has a class token, and a DeiT on 2 x 2."""
    convit = create_model("convit_tiny", image_size=(24, 40), depth=3, gpsa_layers=2, **SMALL)
    gates = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    for block, gating in zip(convit.blocks, gates, strict=False):
        block.attention.gating[...] = gating
        block.attention.qk.kernel[...] = 4 * block.attention.qk.kernel[...]
    return {"ConViT": convit, "DeiT": create_model("deit_tiny", image_size=16, depth=2, **SMALL)}


@pytest.fixture(scope="module")
def images(models):
    """The pixels that each model is given: uint8 [2, height, width, 3]."""
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 255, (2, *m.architecture.image_size, 3), np.uint8)
            for name, m in models.items()}  # fmt: skip


@pytest.fixture(scope="module")
def path(models, images, tmp_path_factory):
    findings = []
    for name, model in models.items():
        a, pixels = model.architecture, images[name]
        # What the page does not show is not measured: that takes longer than all tests here.
        fields = {field.name: None for field in dataclasses.fields(Findings)} | {
            "name": name,
            "architecture": a,
            "gates": np.asarray(locality.gates(model)),
            "v_pos": locality.positional_vectors(model),
            "query": central_patch(a.grid),
            "in_images": attention_in_images(
                model, Preprocessing(a.image_size).normalise(pixels), pixels, NAMES, "abcdefg"
            ),
        }
        findings.append(Findings(**fields))
    return write_exploration(findings, epath.Path(tmp_path_factory.mktemp("page")))


@pytest.fixture(scope="module")
def maps(models, images):
    """The attention maps of each model: a [2, H, T, T] per layer."""
    return {name: [np.asarray(m) for m in model.attention_maps(
                Preprocessing(model.architecture.image_size).normalise(images[name]))]
            for name, model in models.items()}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, path):
    """Return a function that opens the page; it may ask for nothing else, nor report an error."""
    contexts, problems, requests = [], [], []

    def start(**options):
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        settle(page)
        return page

    yield start
    for context in contexts:
        context.close()
    assert problems == []
    assert {url for url in requests if not url.startswith("data:image/")} == {path.as_uri()}


@pytest.fixture
def page(open_page):
    return open_page()


def choose_layer(page, number):
    page.get_by_role("radio", name=str(number)).check()
    settle(page)


def settle(page):
    """Wait until what was last asked for is drawn."""
    page.evaluate("draw()")


def shown(page, model):
    """Weights that the page computes for all heads of a model: [H, N]."""
    return np.array(page.evaluate("async (m) => (await shownAttention(m)).heads", model))


def status(page, model=0):
    return page.locator(".status").nth(model).text_content()


@pytest.fixture(scope="module")
def assert_close(path):
    """Return a function that checks weights to the error that the page states."""
    percent = float(re.search(r"an error of up to ([\d.]+) %", path.read_text())[1])
    error = (percent + 0.05) / 100  # it is rounded

    def check(weights, expected, tokens):
        np.testing.assert_allclose(weights, expected, rtol=error, atol=FLOOR / tokens)

    return check


def test_every_patch_layer_and_picture_shows_the_model_s_attention(
    page, maps, models, assert_close
):
    for picture in (0, 1):
        page.locator("#picture").select_option(str(picture))
        for layer in (1, 2, 3):
            choose_layer(page, layer)
            for number, name in enumerate(models):
                a = models[name].architecture
                rows, columns = a.grid
                full = maps[name][min(layer, a.depth) - 1][picture]
                for index in range(rows * columns):
                    place = [(index // columns + 0.5) / rows, (index % columns + 0.5) / columns]
                    page.evaluate("(place) => { state.kept = place }", place)
                    expected = full[:, -rows * columns :, -rows * columns :][:, index]
                    assert_close(shown(page, number), expected, full.shape[-1])


def test_gates_split_content_from_position(page, maps, models, assert_close):
    choose_layer(page, 2)
    layer = models["ConViT"].blocks[1].attention
    position = np.asarray(layer.positional_attention((3, 5)))[:, 7]  # the central patch
    gates = np.asarray(layer.gate())
    mixture = maps["ConViT"][1][0][:, 7]
    content = (mixture - gates[:, None] * position) / (1 - gates[:, None])
    slider = page.get_by_label("Gate of all heads")
    sliders = page.locator(".model").first.locator(".head input")
    assert [float(sliders.nth(n).input_value()) for n in range(4)] == pytest.approx(
        gates, abs=0.006
    )
    slider.fill("1")
    settle(page)
    np.testing.assert_allclose(shown(page, 0), position, atol=1e-6)
    assert "→ 1.00" in page.locator("output").first.text_content()
    slider.fill("0")
    settle(page)
    assert_close(shown(page, 0), content, 15)
    page.get_by_label("ConViT, gate of head 2").fill("0.5")
    settle(page)
    assert_close(shown(page, 0)[1], (content + position)[1] / 2, 15)
    assert_close(shown(page, 0)[2], content[2], 15)
    page.get_by_role("button", name="Learned gates").click()
    settle(page)
    assert_close(shown(page, 0), mixture, 15)
    choose_layer(page, 3)  # plain, in both models
    assert slider.is_disabled()
    assert not sliders.first.is_visible()


def test_the_class_token_looks_where_there_is_one(page, maps, assert_close):
    choose_layer(page, 3)
    page.get_by_label("Look from the class token").check()
    settle(page)
    assert_close(shown(page, 0), maps["ConViT"][2][0][:, 0, 1:], 16)
    assert status(page).startswith("Class token; to the class token")
    share = maps["ConViT"][2][0][:, 0, 0].mean()
    assert float(status(page).split()[-4]) == pytest.approx(100 * share, rel=0.06)
    choose_layer(page, 1)  # GPSA: no class token, the patch again; the DeiT has one in every layer
    assert status(page) == "Patch in row 2, column 3"
    assert status(page, 1).startswith("Class token")


def test_keyboard(page):
    stage = page.locator(".stage").first
    stage.focus()
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "ArrowRight", "ArrowRight"):  # to the edges
        page.keyboard.press(key)
        settle(page)
    assert status(page) == "Patch in row 1, column 5"
    assert status(page, 1).startswith("Patch in row 1, column 2")  # the same place, larger patches
    radio = page.get_by_role("radio", name="1")
    radio.focus()
    page.keyboard.press("ArrowRight")
    settle(page)
    assert page.locator("h3").first.text_content().startswith("Heads of layer 2, GPSA")
    head = page.get_by_role("button", name="Head 3 in the large picture").first
    head.focus()
    page.keyboard.press("Enter")
    settle(page)
    assert head.get_attribute("aria-pressed") == "true"
    assert page.locator("#overlay").input_value() == "head"
    page.get_by_label("ConViT, gate of head 1").focus()
    before = shown(page, 0)[0]
    page.keyboard.press("ArrowRight")
    settle(page)
    assert not np.array_equal(shown(page, 0)[0], before)


def test_a_mouse_shows_a_patch_and_a_click_keeps_it(page):
    box = page.locator(".stage").first.bounding_box()

    def point(row, column):
        page.mouse.move(box["x"] + (column + 0.5) * box["width"] / 5,
                        box["y"] + (row + 0.5) * box["height"] / 3)  # fmt: skip
        settle(page)

    point(2, 1)
    assert status(page) == "Patch in row 3, column 2"
    page.mouse.move(1, 1)
    settle(page)
    assert status(page) == "Patch in row 2, column 3"
    point(0, 4)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(1, 1)
    settle(page)
    assert status(page) == "Patch in row 1, column 5"


def test_a_finger_on_a_small_screen_in_the_dark(open_page):
    page = open_page(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    box = page.locator(".stage").first.bounding_box()
    page.touchscreen.tap(box["x"] + 1, box["y"] + box["height"] - 1)
    settle(page)
    assert status(page) == "Patch in row 3, column 1"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colours = (
        page.evaluate(f"getComputedStyle(document.body).{name}")
        for name in ("color", "backgroundColor")
    )
    text, background = (sum(map(int, colour.strip("rgb()").split(","))) for colour in colours)
    assert text > 600 > 100 > background


def test_colours_are_those_of_the_weights(page, maps):
    choose_layer(page, 2)
    weights = maps["ConViT"][1][0][:, 7]
    low = np.log(0.1 / 15)
    expected = {
        "log": np.clip((np.log(weights) - low) / (np.log(weights.max()) - low), 0, 1),
        "linear": weights / weights.max(),
        "own": weights / weights.max(axis=1, keepdims=True),
    }
    for scale, strengths in expected.items():
        page.locator("#scale").select_option(scale)
        settle(page)
        for head, strength in enumerate(strengths):
            width, height, opacity = page.evaluate(
                """(head) => {
                  const canvas = document.querySelectorAll(".head canvas")[head];
                  const { width, height } = canvas;
                  const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
                  return [width, height, [...data].filter((_, k) => k % 4 === 3)];
                }""",
                head,
            )
            assert (width, height) == (5, 3)
            assert np.abs(opacity - 255 * 0.85 * (0.25 + 0.75 * strength)).max() < 5


def test_the_large_picture_and_the_classes(page, models, images):
    model = models["DeiT"]
    pixels = Preprocessing((16, 16)).normalise(images["DeiT"])
    logits = np.asarray(model(pixels)[0], float)
    shares = np.exp(logits) / np.exp(logits).sum()
    items = page.locator(".model").nth(1).locator(".classes li").all_text_contents()
    best = np.argmax(logits)
    assert items[0].startswith("abcdefg"[best])
    assert float(items[0][1:].rstrip(" %")) == pytest.approx(100 * shares[best], abs=0.6)
    canvas = page.locator(".stage canvas").nth(1)
    assert not canvas.is_visible()  # the photograph alone
    page.locator("#overlay").select_option("rollout")
    settle(page)
    rollout = np.asarray(model.attention_rollout(pixels)[0])
    low, high = (float(word) for word in status(page, 1).split()[1:5:3])
    assert (low, high) == pytest.approx((100 * rollout.min(), 100 * rollout.max()), abs=0.6)
    assert canvas.is_visible()
