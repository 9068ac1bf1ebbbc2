"""Makes the built site independent of the network: mathematics, fonts, no foreign scripts.

The page must work from a disk without a connection. So MathJax is one file of our own, fonts are
written into the style sheet (some browsers refuse font files on file://), and scripts that the
build tools would load from elsewhere are left out.
"""

import base64
import shutil
from importlib.metadata import distribution
from pathlib import Path

FONT_FOLDER = Path(__file__).parent.parent / "_static" / "fonts"
MATHJAX = "tex-svg-full.js"

# file, family, style: the weights 200 to 900 are one axis of each file
FONTS = [
    ("source-serif-4-latin-opsz-normal.woff2", "Source Serif 4", "normal"),
    ("source-serif-4-latin-wght-italic.woff2", "Source Serif 4", "italic"),
    ("source-code-pro-latin-wght-normal.woff2", "Source Code Pro", "normal"),
]


def setup(app):
    app.connect("config-inited", use_local_scripts, priority=900)
    app.connect("builder-inited", write_static_files)
    app.connect("html-page-context", drop_foreign_scripts, priority=999)
    app.connect("build-finished", empty_icon_library)
    app.connect("build-finished", drop_source_maps)
    app.set_html_assets_policy("always")  # pages written from data have equations too
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def use_local_scripts(app, config):
    config.mathjax_path = f"mathjax/{MATHJAX}"
    config.nb_ipywidgets_js = {}


def write_static_files(app):
    """Copy MathJax and write fonts.css before the first page asks for them."""
    if app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    (static / "mathjax").mkdir(parents=True, exist_ok=True)
    target = static / "mathjax" / MATHJAX
    if not target.exists():
        shutil.copyfile(mathjax_source(), target)
    (static / "fonts.css").write_text(font_rules())


def mathjax_source():
    """The one file we use of the package that carries MathJax."""
    files = distribution("sphinx-mathjax-offline").files or []
    return next(file.locate() for file in files if file.name == MATHJAX)


def font_rules():
    return "\n".join(font_rule(*font) for font in FONTS) + "\n"


def font_rule(file, family, style):
    data = base64.b64encode((FONT_FOLDER / file).read_bytes()).decode()
    return (
        f'@font-face {{ font-family: "{family}"; font-style: {style}; font-weight: 200 900; '
        f"font-display: swap; src: url(data:font/woff2;base64,{data}) format('woff2'); }}"
    )


def empty_icon_library(app, error):
    """icons.css has the icons that the pages show; the theme's 1.5 MB of all others stay empty."""
    library = Path(app.outdir) / "_static" / "scripts" / "fontawesome.js"
    if library.exists():
        library.write_text("// see icons.css\n")


def drop_source_maps(app, error):
    """3 MB with which the theme's own developers find their lines; no page asks for them."""
    for path in (Path(app.outdir) / "_static").rglob("*.map"):
        path.unlink()


def drop_foreign_scripts(app, page, template, context, doctree):
    """sphinx-thebe asks for a script on another machine, twice."""
    context["script_files"] = [
        script for script in context.get("script_files", []) if "thebe" not in str(script).lower()
    ]
