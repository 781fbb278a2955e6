"""The console's one dictionary: English phrase → Korean, by page."""

from __future__ import annotations

from typing import Final

WORDS: Final[dict[str, str]] = {
    # frame, sign-in, shared
    "Fleet": "기기",
    "Models": "모델",
    "Rollouts": "배포",
    "Drift": "드리프트",
    "Jobs": "작업",
    "Enrolment": "등록",
    "Audit": "감사 기록",
    "Menu": "메뉴",
    "Sign in": "로그인",
    "Sign out": "로그아웃",
    "API token": "API 토큰",
    "Enter a token.": "토큰을 입력하세요.",
    "The control plane does not know this token. Check it, or ask for a new one.": (
        "컨트롤 플레인이 모르는 토큰입니다. 다시 확인하거나 새 토큰을 요청하세요."
    ),
    "The control plane prints a sign-in link with a token when it starts.": (
        "컨트롤 플레인은 시작할 때 토큰이 포함된 로그인 링크를 출력합니다."
    ),
    "There is no such page": "없는 페이지입니다",
    "The address may be mistyped, or the thing may be gone.": (
        "주소가 잘못되었거나 대상이 삭제되었을 수 있습니다."
    ),
    "Go to the fleet": "기기 목록으로",
    "There is nothing here": "여기에는 아무것도 없습니다",
    "Control plane does not answer": "컨트롤 플레인 응답 없음",
    "Broker connected": "브로커 연결됨",
    "Broker not connected": "브로커 연결 안 됨",
    "Loading…": "불러오는 중…",
    "Close": "닫기",
    "Cancel": "취소",
    "Start": "시작",
    "Create": "만들기",
    "Created": "생성",
    "Last change": "마지막 변경",
    "State": "상태",
    "Detail": "상세",
    "Evidence": "근거",
    "newest first": "최신순",
    "and {n} more": "외 {n}개",
    "by {name}": "{name}",
    "Reason, for the audit": "감사 기록에 남길 사유",
    "Device": "기기",
    "Devices": "기기",
    "Model": "모델",
    "Version": "버전",
    "Profile": "프로파일",
    "Profiles": "프로파일",
    "Labels": "라벨",
    "Label, e.g. site=busan": "라벨, 예: site=busan",
    "Project": "프로젝트",
    "Download": "내려받기",
    # fleet
    "Every device, what it serves, and its health.": "모든 기기와 서빙 중인 모델, 상태를 봅니다.",
    "Add devices": "기기 추가",
    "All": "전체",
    "Online": "온라인",
    "Offline": "오프라인",
    "{n} offline": "오프라인 {n}",
    "1 device": "기기 1대",
    "{n} devices": "기기 {n}대",
    "Rollouts running": "진행 중인 배포",
    "Jobs running": "진행 중인 작업",
    "Models drifting": "드리프트 모델",
    "Samples collected": "수집된 샘플",
    "Search by device or profile": "기기 또는 프로파일 검색",
    "Last seen": "마지막 접속",
    "Agent": "에이전트",
    "No device matches": "조건에 맞는 기기가 없습니다",
    "Change or clear the search and the filters.": "검색어와 필터를 바꾸거나 지워 보세요.",
    "No devices yet": "아직 기기가 없습니다",
    "Create a claim under Enrolment, then enrol the first device with it:": (
        "등록에서 클레임을 만든 뒤, 그 파일로 첫 기기를 등록하세요:"
    ),
    "{first}–{last} of {total}": "총 {total} 중 {first}–{last}",
    "Previous page": "이전 페이지",
    "Next page": "다음 페이지",
    # device
    "Twin": "트윈",
    "what the control plane wants, and what the device says it serves": (
        "컨트롤 플레인이 지정한 상태와 기기가 보고한 상태"
    ),
    "Nothing assigned yet": "아직 할당되지 않았습니다",
    "The champion of its profile is assigned once there is one.": (
        "프로파일의 챔피언이 정해지면 할당됩니다."
    ),
    "Desired": "목표",
    "Reported": "보고",
    "Variant": "변형",
    "Digest": "다이제스트",
    "generation": "세대",
    "counter": "카운터",
    "Desired and reported as JSON": "목표와 보고를 JSON으로 보기",
    "Latency": "지연 시간",
    "as the device's clients see it, p50 and p99": "기기의 클라이언트가 겪는 p50과 p99",
    "No figures yet": "아직 수치가 없습니다",
    "They come with the first minute of traffic on the device.": (
        "기기에 트래픽이 들어오고 1분이 지나면 표시됩니다."
    ),
    "Requests": "요청",
    "Errors": "오류",
    "Rejects": "거부",
    "Corrections": "정정",
    "per window": "구간당",
    "History": "이력",
    "updates, newest first": "업데이트, 최신순",
    "No updates yet": "아직 업데이트가 없습니다",
    "Each step of an update is listed here as the device reports it.": (
        "기기가 보고하는 업데이트 단계가 여기에 표시됩니다."
    ),
    "All {n} steps": "전체 {n}단계",
    "Inventory": "사양",
    "found by the device itself": "기기가 직접 찾은 정보",
    "Board": "보드",
    "Accelerators": "가속기",
    "Lacks for its profile": "프로필에 비해 부족한 점",
    "No inventory yet": "아직 사양 정보가 없습니다",
    "It comes with enrolment.": "등록할 때 함께 전송됩니다.",
    "Machine": "머신",
    "Cores": "코어",
    "Memory": "메모리",
    "Free disk": "디스크 여유",
    "CPU flags": "CPU 플래그",
    "Runtimes": "런타임",
    "Python": "Python",
    "Enrolled": "등록",
    "Certificate valid until": "인증서 만료",
    # a device's commands
    "Commands": "명령",
    "done once, when the device is online": "기기가 온라인일 때 한 번 실행됩니다",
    "Fetch the log": "로그 가져오기",
    "Fetch diagnostics": "진단 자료 가져오기",
    "Ask for its state again": "상태 다시 요청",
    "Change sampling": "샘플링 바꾸기",
    "Restart the agent": "에이전트 재시작",
    "Restart": "재시작",
    "Restart the agent of {name}?": "{name}의 에이전트를 재시작할까요?",
    "It answers no predictions for some seconds. Its versions and its journal stay.": (
        "몇 초 동안 예측에 응답하지 않습니다. 설치된 버전과 저널은 그대로 유지됩니다."
    ),
    "Asked: {name}": "요청했습니다: {name}",
    "The device serves no model yet.": "기기가 아직 서빙하는 모델이 없습니다.",
    "Sample differently for some time": "일정 시간 샘플링 바꾸기",
    "It falls back by itself. The model's byte budget and privacy hooks hold all the same.": (
        "시간이 지나면 원래대로 돌아갑니다. 전송 예산과 개인정보 처리는 그대로입니다."
    ),
    "Share of all inputs, %": "전체 입력 중 비율, %",
    "For minutes": "지속 시간, 분",
    "No commands yet": "아직 명령이 없습니다",
    "What is asked of the device is listed here with its answer.": (
        "기기에 요청한 명령과 그 결과가 여기에 표시됩니다."
    ),
    "Command": "명령",
    "Asked": "요청",
    "By": "요청한 사람",
    "Take back": "취소하기",
    "Taken back": "취소했습니다",
    "Log": "로그",
    "Diagnostics": "진단 자료",
    "State again": "상태 재전송",
    "Sampling": "샘플링",
    # groups
    "Groups": "그룹",
    "Group": "그룹",
    "New group": "새 그룹",
    "Named sets of devices: members by name, or whoever matches a query now.": (
        "이름을 붙인 기기 묶음입니다. 기기를 직접 지정하거나, 지금 쿼리에 맞는 기기로 정합니다."
    ),
    "Query": "쿼리",
    "column {n}": "{n}번째 글자",
    "Name": "이름",
    "Description": "설명",
    "Members, instead of a query": "쿼리 대신 기기 지정",
    "No groups yet": "아직 그룹이 없습니다",
    "Name one above; queries and rollouts can then ask for it.": (
        "위에서 만들면 쿼리와 배포에서 쓸 수 있습니다."
    ),
    "Delete": "삭제",
    "Deleted": "삭제했습니다",
    "Delete group {name}?": "그룹 {name}을(를) 삭제할까요?",
    "Its devices stay. A group that something asks for is not deleted.": (
        "기기는 그대로 남습니다. 다른 곳에서 쓰는 그룹은 삭제되지 않습니다."
    ),
    # models
    "Versions from candidate to champion, with what they were judged by.": (
        "후보에서 챔피언까지, 각 버전과 평가 결과입니다."
    ),
    "No models yet": "아직 모델이 없습니다",
    "Apply a project and build it; each build adds a candidate here.": (
        "프로젝트를 적용하고 빌드하세요. 빌드할 때마다 후보가 추가됩니다."
    ),
    "1 version": "버전 1개",
    "{n} versions": "버전 {n}개",
    "Selected per profile": "프로파일별 선택",
    "From": "기반",
    "Dataset": "데이터셋",
    "Job": "작업",
    "Frontier": "프런티어",
    "filled: within the budget · hollow: not · outlined with its name: selected": (
        "채움: 예산 충족 · 빈 원: 미충족 · 테두리와 이름: 선택됨"
    ),
    "Accuracy (macro F1)": "정확도 (macro F1)",
    "budget": "예산",
    "Nothing measured yet": "아직 측정되지 않았습니다",
    "The build measures every candidate on its profile.": (
        "빌드가 모든 후보를 해당 프로파일에서 측정합니다."
    ),
    "Gates": "게이트",
    "against the champion, on held-out data": "별도 데이터로 챔피언과 비교",
    "Not judged yet": "아직 판정되지 않았습니다",
    "Gates are judged at the end of the build.": "게이트는 빌드 마지막에 판정됩니다.",
    "Candidates": "후보",
    "the pool: each can be downloaded, one per profile is selected": (
        "모두 내려받을 수 있고, 프로파일마다 하나가 선택됩니다"
    ),
    "No candidates": "후보가 없습니다",
    "The build has made none yet.": "빌드가 아직 만들지 않았습니다.",
    "Verdict": "판정",
    "Macro F1": "Macro F1",
    "Accuracy": "정확도",
    "Balanced accuracy": "균형 정확도",
    "Size": "크기",
    "Lineage": "계보",
    "from data and code to what devices run": "데이터와 코드에서 기기의 모델까지",
    "Parent": "부모",
    "Code": "코드",
    "Release": "릴리스",
    "Environment of the build": "빌드 환경",
    "Signed releases": "서명된 릴리스",
    "Promotions": "승격 이력",
    "Quality": "품질",
    "of the selected variants, on held-out data": "선택된 변형, 별도 데이터 기준",
    "Nothing selected": "선택된 것이 없습니다",
    "No variant fits a budget.": "예산에 맞는 변형이 없습니다.",
    "Recall by class": "클래스별 재현율",
    "Approve": "승인",
    "Reject": "반려",
    "Publish": "게시",
    "Roll out": "배포하기",
    "Approve {name}?": "{name}을(를) 승인할까요?",
    "Reject {name}?": "{name}을(를) 반려할까요?",
    "Publish {name}?": "{name}을(를) 게시할까요?",
    "It can be published to devices afterwards. The audit keeps your name.": (
        "승인 후 기기에 게시할 수 있습니다. 감사 기록에 이름이 남습니다."
    ),
    "1 gate failed. Approve against it only with a good reason.": (
        "게이트 1개가 실패했습니다. 충분한 사유가 있을 때만 승인하세요."
    ),
    "{n} gates failed. Approve against them only with a good reason.": (
        "게이트 {n}개가 실패했습니다. 충분한 사유가 있을 때만 승인하세요."
    ),
    "1 gate lacks data, so the verdict is yours.": (
        "게이트 1개의 데이터가 부족합니다. 직접 판단해 주세요."
    ),
    "{n} gates lack data, so the verdict is yours.": (
        "게이트 {n}개의 데이터가 부족합니다. 직접 판단해 주세요."
    ),
    "It was not judged by gates.": "게이트 판정을 거치지 않았습니다.",
    "A rejected version stays in the history and cannot be published.": (
        "반려된 버전은 이력에 남으며 게시할 수 없습니다."
    ),
    "One candidate per profile is signed. Devices get it by a rollout.": (
        "프로파일마다 후보 하나에 서명합니다. 기기에는 배포로 전달됩니다."
    ),
    "Approved": "승인했습니다",
    "Rejected": "반려했습니다",
    "Published": "게시했습니다",
    # rollouts
    "Versions on their way to devices, wave by wave.": "웨이브 단위로 기기에 전달되는 버전입니다.",
    "Start a rollout": "배포 시작",
    "Wave": "웨이브",
    "Started by": "시작한 사람",
    "healthy, failed and under way": "정상, 실패, 진행 중",
    "No rollouts yet": "아직 배포가 없습니다",
    "Publish a version under Models, then start its rollout here.": (
        "모델에서 버전을 게시한 뒤 여기서 배포를 시작하세요."
    ),
    "Rollout {id}": "배포 {id}",
    "Healthy": "정상",
    "Failed": "실패",
    "Under way": "진행 중",
    "Wave {n}": "웨이브 {n}",
    "{n} healthy": "정상 {n}",
    "{n} failed": "실패 {n}",
    "what each wave was held to, with the figures": "각 웨이브의 기준과 수치",
    "No verdict yet": "아직 판정이 없습니다",
    "A wave is judged when its devices have settled and soaked.": (
        "기기가 안정되고 관찰 시간이 지나면 웨이브를 판정합니다."
    ),
    "Plan": "계획",
    "Whole plan as JSON": "전체 계획을 JSON으로 보기",
    "Phase": "단계",
    "Generation": "세대",
    "No device yet": "아직 기기가 없습니다",
    "Devices are listed once their wave is offered.": "웨이브가 시작되면 기기가 표시됩니다.",
    "the {shown} that need a look first, of {total}": "총 {total}대 중 먼저 볼 {shown}대",
    "Roll back": "되돌리기",
    "Halt": "중단",
    "Pause": "일시 정지",
    "Resume": "재개",
    "Roll back?": "되돌릴까요?",
    "Every device that got this version goes back to the release it had, under a new counter.": (
        "이 버전을 받은 모든 기기가 새 카운터로 이전 릴리스로 돌아갑니다."
    ),
    "Cancel the rollout?": "배포를 취소할까요?",
    "Devices that have not started are withdrawn; those that have finished keep the version.": (
        "시작하지 않은 기기는 제외되고, 완료한 기기는 버전을 유지합니다."
    ),
    "Halt the rollout?": "배포를 중단할까요?",
    "No further device is offered the version. A halted rollout can only be rolled back.": (
        "더 이상 기기에 전달하지 않습니다. 중단된 배포는 되돌리기만 할 수 있습니다."
    ),
    "Accepted: {action}": "접수됨: {action}",
    "Each wave is judged before the next one starts.": (
        "다음 웨이브를 시작하기 전에 매번 판정합니다."
    ),
    "Nothing is published yet": "아직 게시된 버전이 없습니다",
    "Approve and publish a version under Models first.": (
        "먼저 모델에서 버전을 승인하고 게시하세요."
    ),
    "What and where": "대상",
    "Empty: every profile that has a release": "비우면 릴리스가 있는 모든 프로파일",
    "Only devices that carry all of these": "이 라벨을 모두 가진 기기만",
    "Waves": "웨이브",
    "Sizes": "크기",
    "devices, a share of those left, or a {query}": "기기 수, 남은 기기의 비율 또는 {query}",
    "Only devices that match; empty: all": "조건에 맞는 기기만, 비우면 모두",
    "Safety": "안전",
    "Roll back when a gate fails": "게이트가 실패하면 되돌리기",
    "A second person must approve it": "다른 사람의 승인이 필요함",
    "And every wave": "웨이브마다 승인",
    "Windows": "시간대 구간",
    "When devices are offered it; empty: always": "기기에 제공하는 시간, 비우면 항상",
    "Time zone": "시간대",
    "Why it is where it is": "현재 상태의 이유",
    "Waits for {what}": "{what} 대기 중",
    "Soak, seconds": "관찰 시간, 초",
    "how long a wave is watched after it settled": "안정된 뒤 웨이브를 지켜보는 시간",
    "Probation, seconds": "수습 시간, 초",
    "how long a device watches before it commits": "기기가 확정하기 전에 지켜보는 시간",
    "Largest failure rate, %": "최대 실패율, %",
    "Fewest responders": "최소 응답 기기 수",
    "fewer leave a wave to a person": "더 적으면 사람이 판단합니다",
    "Longest time in a phase, seconds": "단계별 최대 시간, 초",
    # drift and collection
    "Whether devices see what the model was judged by. Drift buys labels, not panic.": (
        "기기의 입력이 평가 데이터와 같은지 봅니다. 드리프트는 라벨이 필요하다는 신호입니다."
    ),
    "Check now": "지금 검사",
    "Checked": "검사했습니다",
    "Checks": "검사 이력",
    "Whole fleet": "전체 기기",
    "Scope": "범위",
    "Statistic": "통계량",
    "Threshold": "임계값",
    "Hotelling T²": "Hotelling T²",
    "above the threshold the inputs differ from those the model was judged by": (
        "임계값을 넘으면 입력이 평가 데이터와 다르다는 뜻입니다"
    ),
    "Drift is checked for models that devices serve.": "기기가 서빙하는 모델을 검사합니다.",
    "Not checked yet": "아직 검사하지 않았습니다",
    "Checks start with the first uniform samples from devices.": (
        "기기의 첫 균등 샘플이 도착하면 검사를 시작합니다."
    ),
    "Collection": "수집",
    "samples from the field": "현장에서 온 샘플",
    "Nothing collected yet": "아직 수집된 것이 없습니다",
    "Devices send samples as their sampling policy and byte budget allow.": (
        "기기는 샘플링 정책과 전송 예산 안에서 샘플을 보냅니다."
    ),
    "Samples": "샘플",
    "Labelled": "라벨 있음",
    "uniform": "균등",
    "uncertain": "불확실",
    "event": "이벤트",
    "By device": "기기별",
    "By predicted class": "예측 클래스별",
    "When": "시각",
    # jobs
    "Builds and retrainings. They survive a restart and go on where they stopped.": (
        "빌드와 재학습입니다. 재시작해도 멈춘 곳에서 이어집니다."
    ),
    "Start a job": "작업 시작",
    "No jobs yet": "아직 작업이 없습니다",
    "A build trains a project's models and measures them.": (
        "빌드는 프로젝트의 모델을 학습하고 측정합니다."
    ),
    "Apply a project first, then start a job for it.": (
        "먼저 프로젝트를 적용한 뒤 작업을 시작하세요."
    ),
    "Build: train, optimise and judge from the project's dataset": (
        "빌드: 프로젝트 데이터셋으로 학습, 최적화, 판정"
    ),
    "Retrain: the same with the samples and labels of the field": (
        "재학습: 현장의 샘플과 라벨을 더해 다시"
    ),
    "build": "빌드",
    "retrain": "재학습",
    "Progress": "진행",
    "Report": "보고서",
    "Report of the optimizer": "최적화 보고서",
    "Job queued": "작업을 대기열에 넣었습니다",
    "Cancelling": "취소하는 중입니다",
    "Job {id}": "작업 {id}",
    "Result": "결과",
    "No result yet": "아직 결과가 없습니다",
    "It stands here at the end.": "끝나면 여기에 표시됩니다.",
    "Whole result as JSON": "전체 결과를 JSON으로 보기",
    "Parameters": "매개변수",
    # audit
    "Who did what and when. Entries are only ever added, and each seals the last.": (
        "누가 언제 무엇을 했는지 기록합니다. 추가만 되며 각 항목이 앞 항목을 봉인합니다."
    ),
    "Who": "누가",
    "Action": "동작",
    "Subject": "대상",
    "Seal": "봉인",
    "Newer": "최근",
    "Older": "이전",
    "No entries here": "항목이 없습니다",
    "Every command and every enrolment adds one.": "명령과 등록마다 하나씩 추가됩니다.",
    # enrolment
    "A claim lets one new device in, once. Its file holds a secret, shown only now.": (
        "클레임 하나로 새 기기 한 대를 한 번 등록합니다. 파일의 비밀값은 만들 때만 볼 수 있습니다."
    ),
    "New claim": "새 클레임",
    "Claim": "클레임",
    "Claims": "클레임",
    "Hardware profile": "하드웨어 프로파일",
    "Valid for, hours": "유효 시간, 시간",
    "How many": "개수",
    "Expires": "만료",
    "Revoke": "폐기",
    "Revoked": "폐기했습니다",
    "Revoke the claim?": "클레임을 폐기할까요?",
    "Its file becomes useless. A device that has used it stays enrolled.": (
        "파일을 더 이상 쓸 수 없습니다. 이미 등록된 기기는 그대로 유지됩니다."
    ),
    "Batch": "묶음",
    "Revoke the device?": "기기를 폐기할까요?",
    "Its connection ends within seconds. It comes back by a claim made for it.": (
        "몇 초 안에 연결이 끊깁니다. 이 기기용으로 만든 클레임으로 다시 등록할 수 있습니다."
    ),
    "No claims yet": "아직 클레임이 없습니다",
    "Create one above and copy its file to the new device.": (
        "위에서 만들어 파일을 새 기기로 복사하세요."
    ),
    "On the device:": "기기에서:",
    "1 claim made. Download it now: its secret is not shown again.": (
        "클레임 1개를 만들었습니다. 지금 내려받으세요. 비밀값은 다시 볼 수 없습니다."
    ),
    "{n} claims made. Download them now: their secrets are not shown again.": (
        "클레임 {n}개를 만들었습니다. 지금 내려받으세요. 비밀값은 다시 볼 수 없습니다."
    ),
    # states
    "healthy": "정상",
    "passed": "통과",
    "pass": "통과",
    "champion": "챔피언",
    "published": "게시됨",
    "succeeded": "성공",
    "completed": "완료",
    "online": "온라인",
    "ok": "정상",
    "committed": "확정",
    "open": "사용 가능",
    "in step": "일치",
    "selected": "선택됨",
    "running": "진행 중",
    "offering": "전달 중",
    "soaking": "관찰 중",
    "offered": "제안됨",
    "downloading": "내려받는 중",
    "verified": "검증됨",
    "staged": "준비됨",
    "activating": "전환 중",
    "probation": "수습 중",
    "approved": "승인됨",
    "scheduled": "예약됨",
    "rolling back": "되돌리는 중",
    "candidate": "후보",
    "catching up": "따라가는 중",
    "paused": "일시 정지",
    "insufficient": "데이터 부족",
    "inconclusive": "판단 보류",
    "window wait": "시간대 대기",
    "rolled back": "되돌림",
    "local rollback": "기기에서 되돌림",
    "unreachable": "연결 불가",
    "pending approval": "승인 대기",
    "failed": "실패",
    "fail": "실패",
    "rejected": "거부됨",
    "halted": "중단됨",
    "drift": "드리프트",
    "revoked": "폐기됨",
    "identity cloned": "신원 복제됨",
    "profile differs": "프로파일 불일치",
    "renewal contested": "인증서 갱신 충돌",
    "timed out": "시간 초과",
    "invalid": "무효",
    "pending": "대기",
    "queued": "대기 중",
    "offline": "오프라인",
    "cancelled": "취소됨",
    "superseded": "대체됨",
    "retired": "은퇴",
    "draft": "초안",
    "expired": "만료됨",
    "used": "사용됨",
    "unknown": "알 수 없음",
    "sent": "전송됨",
    "accepted": "수락됨",
    "done": "완료",
    "refused": "거절됨",
}
