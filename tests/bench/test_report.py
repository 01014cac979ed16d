"""The page of results: complete in itself, nothing made up, and working in a browser with no network."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile
from fastjukebox.bench import report
from fastjukebox.bench.tables import Table
from fastjukebox.distill.systems import SYSTEMS

CHROMIUM = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --mute-audio "
    "--autoplay-policy=no-user-gesture-required"
)
MADE = {"device": "Some CPU", "cores": 2, "threads": 2, "torch": "2.6", "commit": "abc"}


def spread(middle):
    return {"p20": 0.9 * middle, "p50": middle, "p80": 1.2 * middle}


def write(path, *records):
    made = [record | {"time": f"2026-01-01T00:00:{i:02}"} for i, record in enumerate(records)]
    path.write_text("".join(json.dumps(MADE | record) + "\n" for record in made))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """int8, roofline and scaling measured, one system to listen to, and nothing else."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "audio").mkdir()
    pitch = 2 * np.pi * np.arange(44100) / 44100
    for name, hertz in (("teacher-72", 440), ("teacher-72-top", 220)):
        soundfile.write(folder / "audio" / f"{name}.mp3", 0.5 * np.sin(hertz * pitch), 44100, format="MP3")
    lost = {"bench": "int8", "bits_fp32": 4.5, "bits_lost": 0.001, "same_likeliest_code": 0.98}
    write(folder / "int8.jsonl", *(lost | {"row": f"demo level {level}", "level": level} for level in (2, 1)))
    step = {"bench": "roofline", "row": "18x128 native fp16 batch 1", "size": "18x128", "decoder": "native", "batch": 1}
    step |= {"dtype": "fp16", "depth": 18, "width": 128, "bytes_per_step": 2_000_000, "bytes": {}}
    step |= {name: spread(20.0) for name in ("read_gb_per_s", "copy_gb_per_s", "floor_us", "us_per_step", "percent")}
    write(folder / "roofline-cpu.jsonl", step)
    scaled = [
        {"bench": "scaling", "row": f"batch {n} of 18x128", "axis": "batch", "value": n, "decoder": "native"}
        | {"codes_per_s": spread(rate), "us_per_step": spread(1e6 / rate)}
        for n, rate in ((1, 100.0), (2, 150.0), (1, 120.0))
    ]
    write(folder / "scaling-cpu.jsonl", *scaled)
    tests = {"bench": "gpu", "row": "tests", "status": "passed", "device": "Some GPU"}
    write(folder / "Some-GPU.json", tests, lost | {"row": "demo level 2", "level": 2, "device": "Some GPU"})
    return folder


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert report.main(["--out", str(path), "--results", str(results)]) == 0
    return path


class Page(HTMLParser):
    """Elements with their attributes, and the words of the page."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def test_the_page_holds_all_it_shows(page):
    text = page.read_text()
    found = Page(text)
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(names) == len(set(names)) and not any(" " in name for name in names)
    links = [attributes["href"] for attributes in found.all("a")]
    assert len(links) == len(report.SECTIONS) and all(link[:1] == "#" and link[1:] in names for link in links)
    assert {attributes.get("aria-labelledby") for attributes in found.all("section")} <= set(names)
    sources = [value for _, a in found.elements for key, value in a.items() if key in ("src", "srcset", "data")]
    sources += [attributes["href"] for attributes in found.all("link")]
    # Two players, their two pictures, roofline, scaling, the icon.
    assert len(sources) == 7 and all(source.startswith("data:") for source in sources)
    assert not found.all("script") and "url(" not in text and "@import" not in text
    assert all(attributes["alt"] for attributes in found.all("img"))


def test_what_is_missing_says_so(page, tmp_path):
    words = " ".join("".join(Page(page.read_text()).words).split())
    for name in ("Table 1 of the paper, end to end", *list(SYSTEMS)[1:]):
        assert f"{name}: not yet measured" in words or f"{name} not yet measured" in words
    assert "teacher-72 upsampled top level alone" in words
    nothing = " ".join("".join(Page(report.render({}, tmp_path)).words).split())
    assert nothing.count("Figures: not yet measured") == 2 and "Measured on" not in nothing
    # Seven systems, two kinds of figures, sixteen tables.
    assert nothing.count("not yet measured") == 7 + 2 + 16


def test_the_same_results_give_the_same_page_with_the_newest_record_of_a_row(results, page):
    assert report.render(report.all_tables(results), results) == page.read_text()
    records = [r for found in report._by_device(results, "scaling", "axis").values() for r in found]
    assert [r["codes_per_s"]["p50"] for r in records] == [120, 150]


def test_a_gpu_has_tables_of_its_own(results):
    found = report.all_tables(results)
    assert len(found["int8-Some-GPU"].rows) == 1 and found["int8-Some-GPU"].title.endswith(": Some-GPU")
    assert [section.title for section in report.sections(found, results)][-1] == "Other devices"
    assert report.devices(results) == ["Some CPU", "Some GPU"]


def test_a_gpu_whose_tests_have_failed_has_no_figures(results, tmp_path):
    shutil.copytree(results, tmp_path / "results")
    tests = {"bench": "gpu", "row": "tests", "status": "failed", "sources": "abc", "device": "Some GPU"}
    step = json.loads((results / "roofline-cpu.jsonl").read_text())
    barrier = {"bench": "exchanges", "row": "grid barrier", "us_per_exchange": spread(1.0)}
    made = {"sources": "abc", "device": "Some GPU"}
    write(tmp_path / "results" / "Some-GPU.json", tests, step | made, barrier | made)
    found = report.all_tables(tmp_path / "results")
    assert found["exchanges-Some-GPU"].rows == () and "Not shown" in found["exchanges-Some-GPU"].note
    words = " ".join("".join(Page(report.render(found, tmp_path / "results")).words).split())
    assert "not yet measured. Not shown: 1 rows of sources abc, whose tests have not passed." in words
    assert len(report.roofline_pictures(tmp_path / "results")) == 1
    write(tmp_path / "results" / "Some-GPU.json", step | made, barrier | made)
    assert report.all_tables(tmp_path / "results")["exchanges-Some-GPU"].rows == ()
    assert len(report.roofline_pictures(tmp_path / "results")) == 1
    write(tmp_path / "results" / "Some-GPU.json", tests | {"status": "passed"}, step | made, barrier | made)
    assert report.all_tables(tmp_path / "results")["exchanges-Some-GPU"].rows[0][0] == "grid barrier"
    assert len(report.roofline_pictures(tmp_path / "results")) == 2


def test_pictures_of_quick_records_say_so(results, tmp_path):
    shutil.copytree(results, tmp_path / "results")
    file = tmp_path / "results" / "scaling-cpu.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()][1:]
    told = []
    for quick in (0, 1, 2):
        write(file, *(r | ({"quick": True} if n < quick else {}) for n, r in enumerate(records)))
        (picture,) = report.scaling_pictures(tmp_path / "results")
        told.append(picture.caption.partition("p20 to p80.")[2])
    assert told == [
        *("", " 1 of 2 points measured with --quick, for orientation."),
        " Measured with --quick, for orientation.",
    ]
    file = tmp_path / "results" / "roofline-cpu.jsonl"
    write(file, json.loads(file.read_text()) | {"quick": True})
    assert report.roofline_pictures(tmp_path / "results")[0].caption.endswith("with --quick, for orientation.")


def test_systems_of_the_top_level_only_have_the_students_upsamplers(results, tmp_path):
    shutil.copytree(results, tmp_path / "results")
    pieces = {"bench": "systems", "seed": 1}
    levels = {"student-18": [2, 1, 0], "plain-18": [2], "plain-24": [2]}
    made = [pieces | {"row": name, "system": name, "levels": found} for name, found in levels.items()]
    write(tmp_path / "results" / "systems.jsonl", pieces | {"row": "0", "system": "student-18", "levels": [2]}, *made)
    mood = {"AP": 0.4, "DP": 0.3, "AU": 0.2, "DU": 0.1}
    scores = {"bench": "table2", "row": "plain-18", "system": "plain-18", "samples": 8, "valence": mood}
    write(tmp_path / "results" / "table2.jsonl", scores)
    found = report.all_tables(tmp_path / "results")
    said = "plain-24 and plain-18 were trained at the top level only and have student-18's upsamplers."
    assert found["table2"].note.endswith(said)
    words = " ".join("".join(Page(report.render(found, tmp_path / "results")).words).split())
    assert f"on the same axes and colours. {said}" in words and words.count(said) == 2


def test_cells_are_escaped_and_numbers_stand_right(tmp_path):
    rows = (("<script>x</script>", "`a<b`", "2.28x (2.08, 2.49)", "18 layers"), ("one", "two", "–", "4"))
    text = report.render({"new": Table("new", "A & B", ("c", "d", "e", "f"), rows, "`run` it")}, tmp_path)
    assert "<script" not in text and "&lt;script&gt;" in text and "A &amp; B" in text
    assert "<code>a&lt;b</code>" in text and "<code>run</code> it" in text
    kinds = [attributes["class"] for attributes in Page(text).all("th") if attributes.get("scope") == "col"]
    assert kinds == ["words", "words", "number", "words"]


def test_a_folder_that_is_not_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        report.main(["--results", str(tmp_path / "none")])
    assert "is not a folder" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not all(CHROMIUM):
        pytest.skip("needs Chromium: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium: pip install selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM[0]
    for flag in (*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMIUM[1]))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, page):
    """The page in a browser that has no network."""
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.get(page.as_uri())
    return browser


def test_a_browser_shows_every_table_and_picture_without_complaint(opened, results):
    found = report.all_tables(results)
    count = (
        "return Object.fromEntries([...document.querySelectorAll('table')].map(t => [t.id, t.tBodies[0].rows.length]))"
    )
    assert opened.execute_script(count) == {f"table-{name}": len(t.rows) for name, t in found.items() if t.rows}
    empty = "return [...document.querySelectorAll('th, td')].filter(cell => !cell.innerText.trim()).length"
    assert opened.execute_script(empty) == 0
    sizes = opened.execute_script("return [...document.images].map(i => [i.complete, i.naturalWidth, i.naturalHeight])")
    assert len(sizes) == 4 and all(complete and width > 100 < height for complete, width, height in sizes)
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert all(name.startswith("data:") for name in loaded)
    assert opened.get_log("browser") == []


def test_every_player_plays(opened):
    assert opened.execute_script("return document.querySelectorAll('audio').length") == 2
    play = """
        const [number, done] = arguments, player = document.querySelectorAll('audio')[number];
        player.addEventListener('timeupdate', () => {
            if (player.currentTime > 0.1) done([player.readyState, player.duration, null]);
        });
        player.play().catch(error => done([0, 0, String(error)]));
    """
    opened.set_script_timeout(30)
    for number in range(2):
        state, duration, error = opened.execute_async_script(play, number)
        assert error is None and state >= 2 and 0.9 < duration < 1.2
    assert opened.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_both_colour_schemes(opened, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    phone = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    assert opened.execute_script("return document.documentElement.scrollWidth") == 400
    # The brightness of the page, and of the writing in a figure.
    paper = opened.execute_script("return getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]")
    drawn = """
        const canvas = document.createElement('canvas'), [image] = document.images;
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const pen = canvas.getContext('2d');
        pen.drawImage(image, 0, 0);
        const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
        const solid = [...pixels.keys()].filter(i => i % 4 == 0 && pixels[i + 3] == 255);
        return solid.map(i => pixels[i]).reduce((a, b) => scheme == 'dark' ? Math.max(a, b) : Math.min(a, b));
    """
    ink = opened.execute_script(f"const scheme = '{scheme}';{drawn}")
    assert (int(paper) < 50 and ink > 200) if scheme == "dark" else (int(paper) > 250 and ink < 50)
