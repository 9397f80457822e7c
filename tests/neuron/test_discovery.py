"""What a host says of itself."""

from __future__ import annotations

from cortex.neuron.discovery import read_cpu


def test_a_cpu_keeps_its_name_and_has_the_hosts_memory():
    cpu = read_cpu("some processor")

    assert (cpu.name, cpu.kind) == ("some processor", "cpu")
    assert cpu.vram_total_mb > cpu.vram_free_mb > 0
    assert cpu.vram_used_mb + cpu.vram_free_mb == cpu.vram_total_mb
