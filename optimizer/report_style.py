"""The style sheet of the report: light and dark by the reader's setting, fit for print."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{--bg:#f6f7f9;--card:#fff;--ink:#18202f;--soft:#5c677d;--line:#e3e7ee;--accent:#2f6fde;
--good:#12805a;--good-bg:#e3f5ee;--bad:#b3372f;--bad-bg:#fcebe9;--warn:#8a5a00;--warn-bg:#fdf3dc}
@media(prefers-color-scheme:dark){:root{--bg:#10141c;--card:#181e29;--ink:#e8ecf4;--soft:#98a3b8;
--line:#2a3242;--accent:#7fa8f5;--good:#5fd3a6;--good-bg:#143329;--bad:#f08a80;--bad-bg:#3a1d1b;
--warn:#e8bd62;--warn-bg:#352a12}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:44px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:2px 0 8px;letter-spacing:-.01em}
h2{font-size:20px;margin:0 0 10px}
p{margin:0}
.eyebrow{color:var(--soft);font-size:12px;letter-spacing:.08em;text-transform:uppercase}
.lead{color:var(--soft);max-width:68ch}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:16px;
margin:26px 0}
.card,.profile{background:var(--card);border:1px solid var(--line);border-radius:14px}
.card{padding:18px 20px;border-top:3px solid var(--good)}
.card.missed{border-top-color:var(--bad)}
.big{font-size:22px;font-weight:650;margin:2px 0 10px}
.card dl,.facts{display:flex;flex-wrap:wrap;gap:8px 26px;margin:0}
dt{color:var(--soft);font-size:12px}
dd{margin:0;font-variant-numeric:tabular-nums;font-weight:600}
.facts dd{font-weight:400;overflow-wrap:anywhere}
.profile{padding:24px 24px 18px;margin:0 0 20px}
.chips{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 14px}
.chips span{border:1px solid var(--line);border-radius:99px;padding:2px 12px;font-size:13px;
color:var(--soft)}
.note{background:var(--warn-bg);color:var(--warn);border-radius:8px;padding:7px 12px;font-size:13px;
margin:0 0 8px}
figure{margin:4px 0 10px}
figure svg{display:block;width:100%;max-width:820px;height:auto;margin:0 auto}
figure svg text{font-family:inherit!important}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;color:var(--soft);font-weight:500;font-size:12px;padding:8px 10px;
border-bottom:1px solid var(--line);white-space:nowrap}
td{padding:10px;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child td{border-bottom:0}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.num{color:var(--soft);font-variant-numeric:tabular-nums}
tr.is-chosen td{background:var(--good-bg)}
.small td{padding:6px 10px;font-size:13px}
.sub{color:var(--soft);font-size:13px}
.reason{color:var(--bad);font-size:13px;max-width:52ch}
.verdict{border-radius:6px;padding:2px 8px;font-size:12px;font-weight:650;letter-spacing:.03em}
.pass{background:var(--good-bg);color:var(--good)}
.fail{background:var(--bad-bg);color:var(--bad)}
.invalid,.inconclusive{background:var(--warn-bg);color:var(--warn)}
.tag,.chosen{display:inline-block;border-radius:6px;padding:1px 8px;font-size:11px;font-weight:600;
vertical-align:middle;margin-left:4px;letter-spacing:.02em}
.tag{border:1px solid var(--line);color:var(--soft)}
.chosen{background:var(--good);color:var(--card)}
details{border-top:1px solid var(--line);padding:10px 0 4px}
summary{cursor:pointer;color:var(--accent);font-size:14px;padding:2px 0}
.bars{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:4px 28px;
margin:10px 0}
.bar{display:grid;grid-template-columns:minmax(24px,auto) 1fr 64px;gap:10px;align-items:center;
font-size:13px;font-variant-numeric:tabular-nums}
.bar i{height:8px;border-radius:4px;
background:linear-gradient(90deg,var(--accent) var(--v),var(--line) var(--v))}
.bar b{font-weight:500;text-align:right}
@media print{body{background:#fff}main{max-width:none;padding:0}.card,.profile{break-inside:avoid}}
"""
