"""Maps the top-level folders clients/, server/ and methods/ into the fedlab package; pyproject.toml cannot."""

from setuptools import find_packages, setup

TOPS = ("clients", "server", "methods")
found = find_packages(include=["fedlab", "fedlab.*", *TOPS, *(f"{top}.*" for top in TOPS)])

setup(
    packages=[name if name.split(".")[0] == "fedlab" else f"fedlab.{name}" for name in found],
    package_dir={"fedlab": "fedlab", **{f"fedlab.{top}": top for top in TOPS}},
    package_data={
        "": [
            "*.yaml",
            "outcome.json",
            "rehearsed.json",
            "*.md",
            "*.j2",
            "*.css",
            "py.typed",
            "app/*.toml",
            "tiny_blip/*",
        ]
    },
)
