"""What no paper is about: engines, processes, run folders, answers, sandboxes. You may leave it shut."""
import os

# OpenMP's threads wait for each other by spinning. Beside another busy process the one that is waited for may
# not be running, and then spinning for milliseconds makes a step several times slower. A short spin costs
# little on an idle machine (docs/performance.md). libgomp reads this when torch loads it: every entry point
# imports `machinery` first.
if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"
