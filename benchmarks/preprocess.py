"""Seconds and memory from a raw pair to records: `python benchmarks/preprocess.py [--t1 F --bold F] [--runs 3]`

Each run is a process of its own with one thread, as one person in a batch has it. Writes reports/preprocess.json, which `storage.py` reads for its plan, and reports/preprocess.md."""
import argparse, json, os, resource, statistics, subprocess, sys, tempfile, time
from pathlib import Path
from brainharmonix.core import provenance, sample

def once(t1, bold, n=1): # n people at once -> wall s, s of each step, peak GB
    with tempfile.TemporaryDirectory() as d:
        for i in range(n):
            p = Path(d)/f'raw/sub-{i}'; (p/'anat').mkdir(parents=True); (p/'func').mkdir()
            for f, to in ((t1, p/'anat'/f'sub-{i}_T1w'), (bold, p/'func'/f'sub-{i}_task-rest_bold')):
                to.with_name(f'{to.name}.nii.gz').symlink_to(Path(f).resolve()); side = Path(str(f).replace('.nii.gz', '.json'))
                if side.exists(): to.with_name(f'{to.name}.json').symlink_to(side.resolve())
        (Path(d)/'raw/dataset_description.json').write_text('{"Name": "timing", "BIDSVersion": "1.9.0"}')
        start = time.perf_counter()
        subprocess.run([str(Path(sys.executable).with_name('brainharmonix')), 'preprocess', f'{d}/raw', f'{d}/out', '--n-jobs', str(n)], check=True, env=dict(os.environ, OMP_NUM_THREADS='1', ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS='1'), stdout=subprocess.DEVNULL)
        wall = time.perf_counter()-start
        entries = [e for i in range(n) for e in json.loads((Path(d)/f'out/sub-{i}/sub-{i}_status.json').read_text())['scans'].values()]
        return wall, {k:statistics.mean(e['seconds'] for e in entries if e['kind'] == k) for k in ('t1','bold')}, {e['kind']:e['bytes'] for e in entries}

p = argparse.ArgumentParser(description=__doc__); folder = sample('studyforrest')
p.add_argument('--t1', default=folder and folder/'sub-02_T1w.nii.gz', help='raw T1w'); p.add_argument('--bold', default=folder and folder/'sub-02_task-oneback_run-1_bold.nii.gz', help='raw run'); p.add_argument('--runs', type=int, default=3, help='repetitions')
a = p.parse_args()
if not a.t1: sys.exit('Give --t1 and --bold, or BRAINHARMONIX_DATA with the studyforrest scans.')
median = lambda v: statistics.median(v)
alone = [once(a.t1, a.bold) for _ in range(a.runs)]; peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss/2**20
cores = os.cpu_count(); full = [once(a.t1, a.bold, cores) for _ in range(max(1, a.runs-1))]
made = dict(sec_t1=round(median([r[1]['t1'] for r in alone]), 1), sec_bold=round(median([r[1]['bold'] for r in alone]), 1), wall=round(median([r[0] for r in alone]), 1), peak_gb=round(peak, 2), bytes=alone[0][2],
            cores=cores, wall_all_cores=round(median([r[0] for r in full]), 1), sec_t1_all_cores=round(median([r[1]['t1'] for r in full]), 1), sec_bold_all_cores=round(median([r[1]['bold'] for r in full]), 1), runs=a.runs, software=provenance())
root = Path(__file__).parent.parent/'reports'
(root/'preprocess.json').write_text(json.dumps(made, indent=1))
(root/'preprocess.md').write_text(f'''# From a raw pair to records

- `python benchmarks/preprocess.py --runs {a.runs}` · commit {(made["software"]["commit"] or "")[:10]} · {cores} cores · data: real ({Path(a.t1).name} and {Path(a.bold).name}) · medians

| | T1, s | BOLD, s | one person with pages and tables, s | peak memory, GB |
|---|---|---|---|---|
| one process, one thread | {made["sec_t1"]} | {made["sec_bold"]} | {made["wall"]} | {made["peak_gb"]} |
| {cores} processes on {cores} cores, one person each | {made["sec_t1_all_cores"]} | {made["sec_bold_all_cores"]} | {made["wall_all_cores"]} (for {cores} people) | |

Records: T1 {made["bytes"]["t1"]/1e6:.2f} MB, BOLD {made["bytes"]["bold"]/1e6:.3f} MB. T1 and BOLD include their figures.
''')
print((root/'preprocess.md').read_text())
