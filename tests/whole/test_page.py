"""A page in a browser: the classes of Keras, a drawing, and a picture that is dropped."""

import base64
import html
import json
import os
import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.conftest import only_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium-headless-shell", "chromium", "google-chrome"))), None
)
# Appended to the page: what a person does, and what the page then says, as JSON.
ASKED = """
<pre id="out"></pre><script>
(async () => {
  const out = { images: [], texts: [] }, say = () => document.getElementById("answer").textContent;
  kdPage.data.examples.forEach(({ pixels, label }, i) => {
    document.querySelectorAll("#examples button")[i].click();
    out.texts.push(say());
    out.images.push(kdPage.show([...kd.bytesOf(pixels)], label).map((one) => one.logits));
  });
  const paper = document.getElementById("paper"), box = paper.getBoundingClientRect();
  const move = (kind, x, y) => paper.dispatchEvent(new PointerEvent(kind, { pointerId: 1,
    clientX: box.left + x * box.width, clientY: box.top + y * box.height }));
  move("pointerdown", 0.45, 0.2); move("pointermove", 0.5, 0.9); move("pointerup", 0.5, 0.9);
  out.drawn = say();
  out.ink = [...document.getElementById("seen").getContext("2d").getImageData(0, 0, 8, 8).data];
  const bytes = kd.bytesOf("PICTURE"), files = new DataTransfer();
  files.items.add(new File([bytes], "a.png", { type: "image/png" }));
  dispatchEvent(new DragEvent("drop", { dataTransfer: files }));
  for (let i = 0; i < 50 && say() === out.drawn; i++) {
    await new Promise((done) => setTimeout(done, 50));
  }
  out.seen = [...document.getElementById("seen").getContext("2d").getImageData(0, 0, 8, 8).data];
  document.getElementById("out").textContent = "kd:" + JSON.stringify(out) + ":kd";
})();
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_page_in_a_browser(kd, work):
    assert kd("distill").code == 0
    run, record = only_run(work / "outputs" / "distill")
    assert kd("export", str(run), "format=page").code == 0
    compare(run, work / record["teacher"]["path"], work)


def compare(run, teacher, work):
    """The page of a run on the digits, in a browser, against Keras."""
    page = (run / "export" / "student-page-float32.html").read_text("utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])

    colours = np.random.default_rng(0).integers(0, 256, (50, 30, 3)).astype(np.uint8)
    Image.fromarray(colours).save(work / "a.png")
    picture = base64.b64encode((work / "a.png").read_bytes()).decode()
    asked = page.replace("</body>", ASKED.replace("PICTURE", picture) + "</body>")
    (work / "asked.html").write_text(asked, "utf-8")
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
         f"--user-data-dir={work / 'browser'}", "--dump-dom", (work / "asked.html").as_uri()],
        capture_output=True, text=True, timeout=300, env={**os.environ, "HOME": str(work)},
    )  # fmt: skip
    told = re.search(r"kd:(\{.*?\}):kd</pre>", done.stdout, re.DOTALL)
    assert told, done.stderr
    said = json.loads(html.unescape(told[1]))

    pixels = [np.frombuffer(base64.b64decode(one["pixels"]), np.uint8) for one in data["examples"]]
    images = np.stack(pixels).reshape(20, 8, 8, 1).astype(np.float32)
    student = keras.saving.load_model(run / "model.keras")
    teacher = keras.saving.load_model(teacher / "model.keras")
    for number, (role, model) in enumerate((("Student", student), ("Teacher", teacher))):
        expected = np.asarray(model(images, training=False))
        found = np.array([image[number] for image in said["images"]])
        np.testing.assert_allclose(found, expected, atol=1e-4)
        for text, label in zip(said["texts"], expected.argmax(1), strict=True):
            assert f"{role}: {label}," in text
    # The line goes from top to bottom of the 8 x 8 pixels, and says what the networks take it for.
    assert re.fullmatch(r"Student: \d, [\d.]+\s%\. Teacher: \d, [\d.]+\s%\.", said["drawn"])
    ink = np.array(said["ink"]).reshape(8, 8, 4)[..., 0]
    assert (ink.max(axis=1) > 60).all() and (ink[:, [0, 7]] < 60).all()
    # A picture is resized as kd resizes those of a folder (grey as in ITU-R BT.601).
    grey = np.rint(colours @ [0.299, 0.587, 0.114])[..., None]
    expected = np.rint(tf.image.resize(grey, (8, 8), antialias=True))[..., 0]
    seen = np.array(said["seen"]).reshape(8, 8, 4)[..., 0]
    assert np.abs(seen - expected).max() <= 1
