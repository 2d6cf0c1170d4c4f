"""Links of the built site."""

from coursekit.pages.site.deadlinks import dead_links, scan


def site(tmp_path, **pages):
    for name, text in pages.items():
        path = (
            tmp_path / name.replace("__", "/") / "index.html" if name != "index" else tmp_path / "index.html"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path


def test_what_is_a_link_and_what_is_not():
    anchors, links = scan(
        '<a href="a/?x=1&amp;y=2#z" id="one">x</a><img src=b.png><link rel="stylesheet" href="c.css">'
        '<link rel="next" href="d/"><p data-id="two" id="three">&lt;a href="e"&gt;</p>'
        "<script>var x = '<a href=\"f\">'</script><!-- <a href='g'> --><pre>href=\"h\"</pre>"
    )
    assert anchors == {"one", "three"}
    assert set(links) == {("go", "a/?x=1&y=2#z"), ("fetch", "b.png"), ("fetch", "c.css")}


def test_live_links(tmp_path):
    root = site(
        tmp_path,
        index='<a href="a/">a</a><a href="./a/index.html#x"></a><a href="https://example.org/">out</a>',
        a='<h2 id="x"></h2><a href="..">home</a><a href="#x"></a><a href="#sym=query"></a>'
        '<a href="../a/#x"></a><a href="mailto:a@b.c"></a><img src="data:image/png;base64,x">',
    )
    assert list(dead_links(root)) == []


def test_dead_links(tmp_path):
    root = site(
        tmp_path,
        index='<a href="b/"></a><a href="a/#y"></a><a href="/a/"></a><a href="#z"></a>',
        a='<img src="lost.png"><script src="https://example.org/x.js"></script>'
        '<img src="//example.org/x.png">',
    )
    found = {(page, address): reason for page, address, reason in dead_links(root)}
    assert found == {
        ("index.html", "b/"): "leads to no file of the site",
        ("index.html", "a/#y"): "leads to no anchor: a/index.html has no 'y'",
        ("index.html", "/a/"): "begins at the root of the host: write it relative to the page",
        ("index.html", "#z"): "leads to no anchor: index.html has no 'z'",
        ("a/index.html", "lost.png"): "leads to no file of the site",
        ("a/index.html", "https://example.org/x.js"): "would be fetched from another host",
        ("a/index.html", "//example.org/x.png"): "would be fetched from another host",
    }
