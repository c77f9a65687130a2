"""From a budget to a run: scaling laws, hardware arithmetic, and a config that follows from them.

`laws` and `repeats` are the papers, `hardware` and `memory` the machines, `proposal`, `batch` and `cluster` choose,
`planner` puts it together, `report`, `picture` and `config_file` show and write it. All of it is arithmetic on plain
values; nothing here starts or reads anything but the price table.
"""
