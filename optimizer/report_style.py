"""The style sheet of the report, light and dark by the reader's setting, and its one script."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root{--bg:#f5f6f8;--card:#fff;--ink:#172033;--soft:#5a657b;--line:#e2e6ed;--accent:#2f6fde;
--good:#12805a;--good-bg:#e4f5ee;--bad:#b3372f;--bad-bg:#fcebe9;--warn:#855700;--warn-bg:#fdf3dc;
--ort:#2f6fde;--ov:#8a4fd3;--trt:#16916a;--on:#fff}
@media(prefers-color-scheme:dark){:root{--bg:#0f131b;--card:#171d28;--ink:#e8ecf4;--soft:#9aa5ba;
--line:#2a3242;--accent:#7fa8f5;--good:#5fd3a6;--good-bg:#133127;--bad:#f08a80;--bad-bg:#3a1d1b;
--warn:#e8bd62;--warn-bg:#33290f;--ort:#7fa8f5;--ov:#bb93f2;--trt:#57cfa3;--on:#10141c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:44px 24px 64px}
h1{font-size:30px;line-height:1.2;margin:2px 0 8px;letter-spacing:-.01em}
h2{font-size:20px;margin:0 0 10px}
h3{font-size:13px;margin:16px 0 3px;color:var(--soft);font-weight:600}
p{margin:0}
.eyebrow{color:var(--soft);font-size:12px;letter-spacing:.08em;text-transform:uppercase}
.lead{color:var(--soft);max-width:76ch;margin-bottom:14px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:16px;
margin:22px 0}
.card,.profile{background:var(--card);border:1px solid var(--line);border-radius:14px}
.card{padding:18px 20px;border-top:3px solid var(--good);color:inherit;text-decoration:none;
min-width:0}
.card:hover{border-color:var(--accent)}
.card.missed{border-top-color:var(--bad)}
.big{font-size:20px;font-weight:650;margin:2px 0 8px;overflow-wrap:anywhere;line-height:1.3}
.proof{margin:0 0 12px}
.proof b{font-size:26px;letter-spacing:-.02em;color:var(--good);margin-right:2px}
.proof small{display:block;color:var(--soft);font-size:12.5px}
.card dl,.facts{display:flex;flex-wrap:wrap;gap:8px 26px;margin:0}
dt{color:var(--soft);font-size:12px}
dd{margin:0;font-variant-numeric:tabular-nums;font-weight:600}
.facts dd{font-weight:400;overflow-wrap:anywhere}
.facts{margin-top:12px}
.profile{padding:24px 24px 18px;margin:0 0 20px;scroll-margin-top:16px}
.chips{display:flex;flex-wrap:wrap;gap:8px;margin:0 0 14px}
.chips span{border:1px solid var(--line);border-radius:99px;padding:2px 12px;font-size:13px;
color:var(--soft)}
.note{background:var(--warn-bg);color:var(--warn);border-radius:8px;padding:7px 12px;font-size:13px;
margin:0 0 8px}
figure{margin:4px 0 2px}
figure svg{display:block;width:100%;min-width:620px;max-width:900px;height:auto;margin:0 auto}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;
fill:var(--soft)}
svg .mid{text-anchor:middle}
svg .end{text-anchor:end}
svg .tick{font-variant-numeric:tabular-nums}
svg .good{fill:var(--good)}
svg .number{font-size:11px;font-weight:650;fill:var(--ink);pointer-events:none}
svg .number.inside{fill:var(--on)}
.grid{stroke:var(--line)}
.axis{stroke:var(--soft);stroke-opacity:.6}
.within{fill:var(--good);fill-opacity:.08}
.bound{stroke:var(--good);stroke-dasharray:5 4}
.frontier{fill:none;stroke:var(--soft);stroke-width:1.3;stroke-opacity:.7}
.mark{--c:var(--soft);fill:var(--c);stroke:var(--c);stroke-width:1.6;fill-opacity:.86}
.onnxruntime{--c:var(--ort)}
.openvino{--c:var(--ov)}
.tensorrt{--c:var(--trt)}
.mark.hollow{fill-opacity:.06}
.mark.dashed{stroke-dasharray:3 3}
.mark.faint{stroke-opacity:.45}
g:hover>.mark{stroke-width:3;stroke-opacity:1}
.ring{fill:none;stroke:var(--good);stroke-width:2.4}
.spread{stroke-width:1.4}
.spread.chosen{fill:var(--good);stroke:var(--good);fill-opacity:.28}
.spread.plain{fill:var(--soft);stroke:var(--soft);fill-opacity:.16}
.median{stroke-width:1.4;stroke-dasharray:2 3}
.median.chosen{stroke:var(--good)}
.median.plain{stroke:var(--soft)}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;justify-content:center;color:var(--soft);
font-size:12.5px;margin:0 0 16px}
.dot{display:inline-block;width:10px;height:10px;border-radius:50%;
background:var(--c,var(--soft));border:1.5px solid var(--c,var(--soft));margin-right:6px;
vertical-align:-1px}
.dot.hollow,.dot.ring,.dot.dashed{background:none}
.dot.dashed{border-style:dashed}
.dot.ring,.dot.chosen-run{--c:var(--good)}
.dot.area{width:14px;height:14px;background:none;box-shadow:inset 0 0 0 3px var(--card),
inset 0 0 0 9px var(--soft);vertical-align:-3px}
.scroll{overflow-x:auto}
.scroll.tall{overflow:auto;max-height:620px}
table{border-collapse:collapse;width:100%;font-size:14px}
th{text-align:left;color:var(--soft);font-weight:500;font-size:12px;padding:8px 10px;
border-bottom:1px solid var(--line);white-space:nowrap;background:var(--card)}
.tall thead th{position:sticky;top:0;z-index:1;box-shadow:0 1px 0 var(--line)}
.sortable th{cursor:pointer;user-select:none}
.sortable th:hover{color:var(--accent)}
.sortable th[aria-sort]{color:var(--ink)}
th[aria-sort=ascending]::after{content:" ↑"}
th[aria-sort=descending]::after{content:" ↓"}
td{padding:10px;border-bottom:1px solid var(--line);vertical-align:top}
tbody tr:last-child td{border-bottom:0}
td:nth-child(2){min-width:290px;overflow-wrap:anywhere}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.num{color:var(--soft);font-variant-numeric:tabular-nums}
tr.is-chosen td{background:var(--good-bg)}
tr.brief td.n{color:var(--soft)}
.small td{padding:6px 10px;font-size:13px}
.small td:nth-child(2){min-width:0}
.sub{color:var(--soft);font-size:13px}
.reason{color:var(--bad);font-size:13px;max-width:60ch}
.brief .reason{color:var(--soft)}
.verdict{border-radius:6px;padding:2px 8px;font-size:12px;font-weight:650;letter-spacing:.03em}
.pass{background:var(--good-bg);color:var(--good)}
.fail{background:var(--bad-bg);color:var(--bad)}
.invalid,.inconclusive{background:var(--warn-bg);color:var(--warn)}
.tag{display:inline-block;border-radius:6px;padding:1px 8px;font-size:11px;font-weight:600;
vertical-align:middle;letter-spacing:.02em;border:1px solid var(--line);color:var(--soft)}
.tag.chosen{background:var(--good);border-color:var(--good);color:var(--card)}
.tag.warn{background:var(--warn-bg);border-color:transparent;color:var(--warn)}
details{border-top:1px solid var(--line);padding:10px 0 6px;margin-top:6px}
summary{cursor:pointer;color:var(--accent);font-size:14px;padding:2px 0}
.why{max-width:92ch;font-size:14px;padding-bottom:6px}
.why h3:first-child{margin-top:6px}
.bars{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(280px,100%),1fr));gap:5px 30px;
margin:10px 0}
.bar{display:grid;grid-template-columns:minmax(24px,auto) 1fr 62px 44px;gap:10px;
align-items:center;font-size:13px;font-variant-numeric:tabular-nums}
.bar i{position:relative;height:8px;border-radius:4px;
background:linear-gradient(90deg,var(--accent) var(--v),var(--line) var(--v))}
.bar u{position:absolute;top:-3px;width:2px;height:14px;margin-left:-1px;background:var(--ink)}
.bar b{font-weight:500;text-align:right}
.bar em{font-style:normal;text-align:right;color:var(--soft)}
.bar em.loss{color:var(--bad)}
.bar em.gain{color:var(--good)}
@media(max-width:640px){main{padding:24px 12px 40px}.profile{padding:18px 14px 12px}
h1{font-size:24px}td{padding:8px}td:nth-child(2){min-width:190px}}
@media print{body{background:#fff}main{max-width:none;padding:0}.card{break-inside:avoid}
.scroll.tall{max-height:none}}
"""

SCRIPT: Final = """
for(const table of document.querySelectorAll("table.sortable")){
const body=table.tBodies[0];
table.querySelectorAll("th").forEach((head,column)=>head.addEventListener("click",()=>{
const down=head.getAttribute("aria-sort")==="ascending";
table.querySelectorAll("th").forEach(other=>other.removeAttribute("aria-sort"));
head.setAttribute("aria-sort",down?"descending":"ascending");
const value=row=>{const cell=row.cells[column];return cell.dataset.v??cell.textContent};
const order=(a,b)=>{if(a===""||b==="")return (a==="")-(b==="");
const by=a-b;return (down?-1:1)*(Number.isNaN(by)?a.localeCompare(b):by)};
[...body.rows].sort((a,b)=>order(value(a),value(b))).forEach(row=>body.append(row))}))}
"""
"""Sorts a table by the column whose heading is clicked; without it the table stands as it is."""
