"""The page's looks: light and dark as the reader's system has it, on a desk or a telephone."""

CSS = """\
:root {
  color-scheme: light dark;
  --page: #ffffff; --raised: #f5f6f8; --ink: #1b1f24; --soft: #5b6470; --line: #d9dde3;
  --link: #1f5fbf; --holds: #1d7a45; --fails: #b3261e; --undecided: #6b7280; --far: #9a5b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --raised: #1d2126; --ink: #e6e8eb; --soft: #9aa3ae; --line: #343a42;
    --link: #7db0ff; --holds: #4fc27f; --fails: #ff8178; --undecided: #a2aab5; --far: #f0b45a;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 84rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  display: grid; gap: 0 2.5rem; padding: 0 1.5rem;
  grid-template: "nav header" auto "nav main" 1fr / 15rem minmax(0, 1fr);
}
header { grid-area: header; padding-top: 1.6rem; }
nav {
  grid-area: nav; position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto;
  padding: 2.2rem 0; font-size: 0.86rem; line-height: 1.35;
}
nav ul { list-style: none; margin: 0; padding: 0; }
nav > ul > li { margin-bottom: 0.7rem; overflow-wrap: anywhere; }
nav > ul > li > a { font-weight: 600; color: var(--ink); }
nav ul ul { margin-top: 0.3rem; padding-left: 0.7rem; border-left: 1px solid var(--line); }
nav ul ul li { padding: 0.12rem 0; }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
main { grid-area: main; padding: 0 0 5rem; min-width: 0; overflow-wrap: break-word; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0.4rem 0 1rem; text-wrap: balance; }
h2 {
  font-size: 1.35rem; line-height: 1.3; margin: 3rem 0 0.8rem; padding-top: 0.9rem;
  border-top: 2px solid var(--ink); text-wrap: balance;
}
h3 { font-size: 1.1rem; margin: 2.4rem 0 0.6rem; }
h4 { font-size: 0.86rem; font-weight: 600; margin: 0 0 0.3rem; }
p { max-width: 46rem; margin: 0.6rem 0; }
p.quiet { color: var(--soft); font-size: 0.86rem; }
small { color: var(--soft); font-weight: 400; }
pre {
  overflow-x: auto; background: var(--raised); border-radius: 6px; padding: 0.8rem 1rem;
  font: 0.84rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
.tiles { display: flex; flex-wrap: wrap; gap: 0.6rem; margin: 0.8rem 0; }
.tile {
  padding: 0.45rem 1rem 0.5rem; border: 1px solid var(--line); border-left: 4px solid var(--line);
  border-radius: 6px; background: var(--raised); min-width: 7.5rem;
}
.tile strong { display: block; font-size: 1.5rem; line-height: 1.2; }
.tile.holds { border-left-color: var(--holds); }
.tile.fails { border-left-color: var(--fails); }
.tile.undecided { border-left-color: var(--undecided); }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td {
  padding: 0.3rem 0.75rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); font-weight: 400;
}
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 1.5px solid var(--ink); }
th.word, td.word { text-align: left; }
tbody th.word { white-space: nowrap; }
th.group { text-align: left; font-weight: 600; padding-top: 0.9rem; }
th.group small { display: block; }
th.apart, td.apart { border-left: 3px double var(--line); }
td small, th:not(.group) small { display: block; font-size: 0.76rem; line-height: 1.35; }
td:not(.word), td small { white-space: nowrap; }
td.far small:last-child { color: var(--far); font-weight: 600; }
td.below > span { text-decoration: underline; text-underline-offset: 3px; }
figure { margin: 0.8rem 0 1rem; }
.panels { display: grid; gap: 1.2rem 1.4rem; align-items: end; }
.panels.many { grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); }
.panels.one { max-width: 31rem; }
.panel { min-width: 0; }
.panel svg { width: 100%; height: auto; display: block; }
.panel svg text { font-family: inherit !important; }
figcaption { color: var(--soft); font-size: 0.84rem; max-width: 46rem; margin: 0.5rem 0 0.4rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 0.45rem 0; }
summary {
  cursor: pointer; padding: 0.5rem 0.8rem; display: flex; gap: 0.7rem; align-items: baseline;
  list-style: none;
}
summary::-webkit-details-marker { display: none; }
summary::before { content: "\\25B8"; color: var(--soft); flex: none; }
details[open] > summary::before { content: "\\25BE"; }
summary:hover { background: var(--raised); }
summary small { display: block; }
.inside ul { columns: 17rem; padding-left: 1.2rem; font-size: 0.88rem; }
.inside { padding: 0 1rem 0.6rem; border-top: 1px solid var(--line); }
.badge {
  flex: none; min-width: 5.4rem; text-align: center; font-size: 0.78rem; font-weight: 600;
  border: 1px solid currentColor; border-radius: 99px; padding: 0.05rem 0.5rem;
  color: var(--undecided);
}
.badge.holds { color: var(--holds); }
.badge.fails { color: var(--fails); }
@media (max-width: 62rem) {
  body { display: block; padding: 0 1rem; }
  header { padding-top: 0.6rem; }
  nav { position: static; max-height: none; padding: 0 0 0.6rem; }
  nav ul ul { border: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 0.9rem; }
  h1 { font-size: 1.4rem; }
  h2 { font-size: 1.18rem; margin-top: 2.2rem; }
}
@media (max-width: 34rem) {
  th, td { padding: 0.3rem 0.5rem; }
  td.word { min-width: 9.5rem; }
  th[scope="row"] { position: sticky; left: 0; background: var(--page); }
  th.group span { position: sticky; left: 0.5rem; display: inline-block; max-width: 82vw; }
  summary { flex-wrap: wrap; gap: 0.2rem 0.6rem; padding: 0.5rem 0.6rem; }
  .badge + span { flex-basis: 100%; }
  .inside { padding: 0 0.6rem 0.5rem; }
  .tile { flex: 1; min-width: 5.5rem; padding: 0.35rem 0.7rem; }
}
@media print { nav { display: none; } body { display: block; } details { break-inside: avoid; } }
"""
