"""The devices of a made-up build (tests/stages/reported.py): names, chips, and how fast each is said to be."""

from __future__ import annotations

Made = tuple[str, str, str, float]  # name, title, chip, speed beside a phone of 2024

IPHONES = [
    ("iphone-12", "iPhone 12", "A14", 0.35), ("iphone-13", "iPhone 13", "A15", 0.45),
    ("iphone-14", "iPhone 14", "A15", 0.45), ("iphone-15", "iPhone 15", "A16", 0.6),
    ("iphone-15-pro", "iPhone 15 Pro", "A17 Pro", 0.8), ("iphone-16", "iPhone 16", "A18", 0.9),
    ("iphone-16-pro", "iPhone 16 Pro", "A18 Pro", 1.0), ("iphone-17-pro", "iPhone 17 Pro", "A19 Pro", 1.2),
    ("ipad-m1", "iPad Pro (M1)", "M1", 1.1), ("ipad-m2", "iPad Pro (M2)", "M2", 1.3),
    ("ipad-m4", "iPad Pro (M4)", "M4", 1.8),
    ("macbook-air-m2", "MacBook Air (M2)", "M2", 1.4), ("macbook-pro-m4", "MacBook Pro (M4 Pro)", "M4 Pro", 3.0),
]  # fmt: skip
ANDROIDS = [
    ("galaxy-s22", "Galaxy S22", "Snapdragon 8 Gen 1", 0.5), ("galaxy-s23", "Galaxy S23", "Snapdragon 8 Gen 2", 0.7),
    ("galaxy-s24", "Galaxy S24", "Snapdragon 8 Gen 3", 0.9), ("galaxy-s25", "Galaxy S25", "Snapdragon 8 Elite", 1.2),
    ("pixel-8", "Pixel 8", "Tensor G3", 0.4), ("pixel-9", "Pixel 9", "Tensor G4", 0.45),
    ("dimensity-9300", "vivo X100 Pro", "Dimensity 9300", 0.8),
    ("exynos-2400", "Galaxy S24 (Exynos)", "Exynos 2400", 0.6),
    ("raspberry-pi-5", "Raspberry Pi 5", "BCM2712", 0.05), ("jetson-orin-nano", "Jetson Orin Nano", "Orin", 0.8),
    ("web-wasm", "Browser, WebAssembly", "any", 0.04), ("web-webgpu", "Browser, WebGPU", "any", 0.3),
]  # fmt: skip


def four() -> list[Made]:
    return [IPHONES[4], IPHONES[0], ANDROIDS[4], ANDROIDS[8]]


def thirty() -> list[Made]:
    extra = [(f"phone-{number}", f"Phone {number} Ultra", "Snapdragon 7", 0.3 + number / 20) for number in range(1, 6)]
    return [*IPHONES, *ANDROIDS, *extra]
