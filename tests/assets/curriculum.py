"""The block on a rail with a curriculum: the closer it was on average, the more that counts."""

from pathlib import Path

from deftly.tasks import load, task

Slider = load(str(Path(__file__).with_name("slider.py")))


@task("slider")
class Curriculum(Slider):
    def curriculum(self, s, progress):
        s.scale["near"] = 1 + progress["reward/near"]
