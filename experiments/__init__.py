"""What the README claims, measured: searches, runs, benchmarks."""

import mansu as mansu  # before torch: it says how threads wait
