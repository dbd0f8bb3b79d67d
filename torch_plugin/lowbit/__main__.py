# SPDX-License-Identifier: MIT
from lowbit.cli import main

main()
