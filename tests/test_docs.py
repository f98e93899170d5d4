"The site is whole: a page for each chapter, links that lead somewhere, nothing fetched from elsewhere"
import html, re
import pytest
from brainharmonix.docs import broken, chapters, heading, page, site

@pytest.fixture(scope='module')
def built(tmp_path_factory): return site(tmp_path_factory.mktemp('book')/'site').parent

def test_a_page_for_each_chapter(built):
    for nb in chapters():
        text = (built/page(nb)).read_text()
        assert f'<h1>{heading(nb)[0]}</h1>' in html.unescape(text), nb.name
        plain = html.unescape(re.sub(r'<[^>]+>', '', text))
        assert not re.search(r'^#\| ', plain, re.M) and 'import nbdev; nbdev.nbdev_export()' not in plain, f'{nb.name} shows what is hidden'
    assert len({page(nb) for nb in chapters()}) == len(chapters())

def test_no_broken_links(built): assert broken(built) == []

def test_a_broken_link_is_found(tmp_path):
    (tmp_path/'a.html').write_text('<h1 id="x"></h1><a href="a.html#x"></a><a href="#y"></a><img src="gone.png">')
    assert broken(tmp_path) == [('a.html', '#y'), ('a.html', 'gone.png')]

def test_sidebar_lists_all_chapters_on_every_page(built):
    for p in built.glob('*.html'):
        nav = p.read_text().split('<nav class="chapters"')[1].split('</nav>')[0]
        assert [h for h in re.findall(r'href="([^"]+)"', nav)] == [page(nb) for nb in chapters()], p.name

def test_symbols_are_documented_and_linked_to_their_source(built):
    core = (built/'core.html').read_text()
    assert 'id="digest"' in core
    line = int(re.search(r'src/brainharmonix\.core\.html#L-(\d+)" class="source">source</a></p>\s*(?:</?\w[^>]*>\s*)*', core)[1])
    assert f'id="L-{line}"' in (built/'src'/'brainharmonix.core.html').read_text()

def test_reads_without_a_network(built):
    for p in built.rglob('*.html'):
        assert not re.search(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//', p.read_text()), p.name

def test_part_of_the_book(tmp_path):
    "Some chapters alone are a site too, and building again replaces it"
    for _ in range(2): first = site(tmp_path/'s', only=('00_core','95_docs'))
    assert {p.name for p in first.parent.glob('*.html')} == {'index.html', 'core.html', 'docs.html'} and broken(first.parent) == []
