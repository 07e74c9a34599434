"""Tiny datasets in the formats of the real ones, for the tests."""

import gzip
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

RANDOM = np.random.RandomState(0)


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, suffix: str = "", train: int = 40, val: int = 20) -> dict[str, tuple]:
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for split, prefix, count in [("train", "train", train), ("val", "t10k", val)]:
        images, labels = RANDOM.randint(0, 256, (count, 28, 28), np.uint8), np.arange(count) % 10
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
        written[split] = images, labels
    return written


def write_cifar(folder: Path, files: dict[str, int], key: str, classes: int) -> dict[str, tuple]:
    """files: name -> number of images; rows hold the red, then the green, then the blue plane."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for name, count in files.items():
        data, labels = RANDOM.randint(0, 256, (count, 3072), np.uint8), [i % classes for i in range(count)]
        content = {"data": data, key: labels, "batch_label": name, "filenames": ["x.png"] * count}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        written[name] = data, labels
    return written


def as_python2(data: np.ndarray, key: str, labels: list[int]) -> bytes:
    """A CIFAR file as the real ones are: pickled by Python 2 and its numpy, whose bytes are strings."""

    def text(value: bytes) -> bytes:
        short = len(value) < 256
        return (b"U" + bytes([len(value)]) if short else b"T" + struct.pack("<I", len(value))) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    shape = number(data.shape[0]) + number(data.shape[1]) + b"\x86"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|")
    dtype += b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87Rq\x05"
    array += b"(K\x01" + shape + dtype + b"\x89" + text(data.tobytes()) + b"tb"
    content = text(b"batch_label") + b"q\x02" + text(b"testing batch 1 of 1") + b"q\x03"
    content += text(key.encode()) + b"q\x04](" + b"".join(map(number, labels)) + b"e"
    content += text(b"data") + array + text(b"filenames") + b"](" + b"".join(text(b"x.png") for _ in labels) + b"e"
    return b"\x80\x02}q\x01(" + content + b"u."


def write_cifar10(root: Path) -> dict[str, tuple]:
    files = {f"data_batch_{i}": 10 + i for i in range(1, 6)} | {"test_batch": 7}
    return write_cifar(root / "cifar-10-batches-py", files, "labels", 10)


def jpeg(size: tuple[int, int], mode: str = "RGB", color: object = None) -> bytes:
    """A JPEG file of this (width, height): one color, or noise."""
    shape = size[::-1] if mode == "L" else (*size[::-1], len(mode))
    noise = RANDOM.randint(0, 256, shape, np.uint8)
    image = Image.fromarray(noise, mode=mode) if color is None else Image.new(mode, size, color)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def write_class_folders(folder: Path, classes: list[str], count: int, suffix: str = ".jpg") -> None:
    """Images of varied sizes; the first of each class is grey, the second CMYK (ImageNet has both)."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            mode = {0: "L", 1: "CMYK"}.get(i, "RGB")
            content = jpeg((40 + 7 * i, 50 + number), mode)
            (folder / name / f"{name[:3]}_{i + 1:04d}{suffix}").write_bytes(content)


def write_pair(image: Path, labels: Path | None, size: tuple[int, int], numbers: list[int], mode: str = "L") -> None:
    """A JPEG or PNG in noise and its map: blocks of these numbers, one after the other along the rows."""
    for path in filter(None, (image, labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.fromarray(RANDOM.randint(0, 256, (size[1], size[0], 3), np.uint8))
    noise.save(image, quality=95)
    if labels is not None:
        write_map(labels, np.resize(np.repeat(numbers, 5), size[::-1]), mode)


def write_map(path: Path, map_HW: np.ndarray, mode: str = "L") -> None:
    """A PNG of grey values (L), of 16 bits (I;16), or of a palette (P), whose colours are not the numbers."""
    image = Image.fromarray(map_HW.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette([(7 * k + 90) % 256 for k in range(768)])
    image.save(path)


def write_ade20k(root: Path) -> None:
    """Three images a split; 0 is void."""
    folder = root / "ADEChallengeData2016"
    for split, name in (("training", "train"), ("validation", "val")):
        for k, size in enumerate([(40, 30), (30, 44), (64, 20)]):
            stem = f"ADE_{name}_{k + 1:08d}"
            maps = folder / "annotations" / split
            write_pair(folder / "images" / split / f"{stem}.jpg", maps / f"{stem}.png", size, [0, 1, 150, 13 + k])
    names = ["Idx\tRatio\tTrain\tVal\tName"]
    names += [f"{k}\t0.1\t{k}\t2\tthing {k}, the {k}th" for k in range(1, 151)]
    (folder / "objectInfo150.txt").write_text("\n".join(names))


def write_cityscapes(root: Path) -> None:
    """Three images a split, in two cities; 0 to 6 and others are void."""
    for split, cities in (("train", "aachen ulm"), ("val", "lindau munster"), ("test", "berlin bonn")):
        for k in range(3):
            city = cities.split()[k // 2]
            stem = f"{city}_00000{k}_000019"
            image = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
            labels = root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png"
            write_pair(image, None if split == "test" else labels, (64, 32), [0, 3, 7, 9, 11, 26, 33])


def write_voc(root: Path) -> None:
    """Three images a split; the maps of two are palettes, as VOC's own are."""
    folder = root / "VOCdevkit" / "VOC2012"
    for split, year in (("trainaug", 2007), ("val", 2009)):
        names = [f"{year}_{k:06d}" for k in (32, 39, 63)]
        for k, name in enumerate(names):
            maps = folder / "SegmentationClassAug" / f"{name}.png"
            size, mode = (50 - 8 * k, 25 + 10 * k), "L" if k == 1 else "P"
            write_pair(folder / "JPEGImages" / f"{name}.jpg", maps, size, [0, 20, 255, 15], mode)
        (folder / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
        (folder / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")


def write_coco(root: Path) -> None:
    """Six JPEGs of unequal sizes a split: polygons, a crowd in run lengths, an empty image, gaps in all numbers."""
    for split, first in (("train", 9), ("val", 900)):
        images, annotations = [], []
        folder = root / f"{split}2017"
        folder.mkdir(parents=True)
        for k, (width, height) in enumerate([(48, 32), (32, 48), (50, 40), (40, 64), (33, 33), (64, 36)]):
            number = first + 7 * k
            name = f"{number:012}.jpg"
            Image.fromarray(RANDOM.randint(0, 256, (height, width, 3), np.uint8)).save(folder / name)
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            boxes = [] if k == 2 else [(4, 6, 12, 10), (10.5, 3.25, 16, 20)][: 1 + k % 2]
            for n, (left, top, w, h) in enumerate(boxes):
                corners = [left, top, left + w, top, left + w, top + h, left, top + h]
                annotations.append(
                    {
                        "id": 1000 - 10 * k - n,
                        "image_id": number,
                        "category_id": (3, 18, 90)[(k + n) % 3],
                        "bbox": [left, top, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [corners],
                    }
                )
            if k in (3, 4):  # column by column: 100 pixels outside, 64 inside, the rest outside
                counts = [100, 64, width * height - 164]
                annotations.append(
                    {
                        "id": 5 + k,
                        "image_id": number,
                        "category_id": 18,
                        "bbox": [1, 2, 20, 30],
                        "area": 64,
                        "iscrowd": 1,
                        "segmentation": {"size": [height, width], "counts": counts},
                    }
                )
        (root / "annotations").mkdir(exist_ok=True)
        content = {
            "images": images[::-1],
            "annotations": annotations,
            "categories": [{"id": n, "name": name} for n, name in ((90, "toothbrush"), (3, "car"), (18, "dog"))],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def write_video(path: Path, frames: int, size: tuple[int, int] = (48, 64), first: int = 0) -> None:
    """An MP4 by PyAV, whose frame k is grey 3 (first + k) + 10: compressed, it is about that."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.gop_size, stream.bit_rate = 1, 8_000_000
        for k in range(frames):
            grey = np.full((*size, 3), 3 * (first + k) + 10, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def write_kinetics(root: Path, frames: int = 70) -> None:
    """Two classes with two videos each for training, one for validation."""
    for split, number in (("train", 2), ("val", 1)):
        for name in ("abseiling", "zumba"):
            for k in range(number):
                write_video(root / split / name / f"{k}.mp4", frames)


def write_something(root: Path, lengths: tuple[int, ...] = (20, 5, 12), size: tuple[int, int] = (30, 40)) -> None:
    """Videos 1, 2, ... of so many frames, frame k of grey 4 k; the last one for validation."""
    root.mkdir(parents=True, exist_ok=True)
    prefix, videos = "something-something-v1", root / "20bn-something-something-v1"
    for video, length in enumerate(lengths, start=1):
        (videos / str(video)).mkdir(parents=True)
        for k in range(1, length + 1):
            Image.new("RGB", size[::-1], (4 * k,) * 3).save(videos / str(video) / f"{k:05d}.jpg", quality=95)
    classes = ["Pushing [something] from left to right", "Closing [something]"]
    (root / f"{prefix}-labels.csv").write_text("\n".join(classes) + "\n")
    for split, members in (("train", range(1, len(lengths))), ("validation", [len(lengths)])):
        lines = [f"{video};{classes[video % 2]}" for video in members]
        (root / f"{prefix}-{split}.csv").write_text("\n".join(lines) + "\n")


def write_modelnet40(root: Path, points: int = 64) -> None:
    """Two training files and a test file of clouds, as published: lists with the folders of whoever wrote them."""
    import h5py  # of the extra `points`

    folder = root / "modelnet40_ply_hdf5_2048"
    folder.mkdir(parents=True)
    for split, counts in (("train", (20, 9)), ("test", (12,))):
        names = [f"ply_data_{split}{k}.h5" for k in range(len(counts))]
        (folder / f"{split}_files.txt").write_text("".join(f"data/{folder.name}/{name}\n" for name in names))
        for name, count in zip(names, counts, strict=True):
            with h5py.File(folder / name, "w") as file:
                file["data"] = RANDOM.uniform(-1, 1, (count, points, 3)).astype(np.float32)
                file["label"] = (np.arange(count, dtype=np.uint8) * 7 % 40)[:, None]
    (folder / "shape_names.txt").write_text("".join(f"thing_{k}\n" for k in range(40)))


def as_records(contents: dict[int, bytes]) -> tuple[bytes, bytes]:
    """What MXNet's RecordIO writes: the .rec and the .idx. Where bytes hold its magic number at a place that is a
    multiple of four, it is left out and the record goes on in another part."""
    magic, records, index = struct.pack("<I", 0xCED7230A), b"", b""
    for number, content in contents.items():
        index += f"{number}\t{len(records)}\n".encode()
        parts, start = [], 0
        for place in range(0, len(content) - 3, 4):
            if content[place : place + 4] == magic:
                parts.append(content[start:place])
                start = place + 4
        parts.append(content[start:])
        for k, part in enumerate(parts):
            flag = 0 if len(parts) == 1 else 1 if k == 0 else 3 if k == len(parts) - 1 else 2
            records += magic + struct.pack("<I", flag << 29 | len(part)) + part + bytes(-len(part) % 4)
    return records, index


def image_record(label: float | list[float], content: bytes, number: int = 0) -> bytes:
    """An image as MXNet packs it, with a label or several."""
    if isinstance(label, list):
        return struct.pack("<IfQQ", len(label), 0.0, number, 0) + struct.pack(f"<{len(label)}f", *label) + content
    return struct.pack("<IfQQ", 0, label, number, 0) + content


def as_pairs(pictures: list[bytes], same: list[bool]) -> bytes:
    """Pairs for verification as Python 2 pickled them (protocol 2): byte strings, True and False."""
    strings = b"".join(b"T" + struct.pack("<I", len(picture)) + picture for picture in pictures)
    answers = b"".join(b"\x88" if answer else b"\x89" for answer in same)
    return b"\x80\x02](" + strings + b"e](" + answers + b"e\x86."


def write_faces(root: Path) -> None:
    """Five persons with two pictures each, records of persons behind them; probes, distractors, noise; six pairs."""
    folder = root / "faces_emore"
    folder.mkdir(parents=True)
    records = {0: image_record([11.0, 16.0], b"")}
    records |= {k: image_record(float((k - 1) // 2), jpeg((112, 112)), k) for k in range(1, 11)}
    records |= {k: image_record([1.0 + 2 * (k - 11), 3.0 + 2 * (k - 11)], b"") for k in range(11, 16)}
    for suffix, content in zip((".rec", ".idx"), as_records(records), strict=True):
        (folder / f"train{suffix}").write_bytes(content)
    (folder / "property").write_text("5,112,112\n")
    (folder / "lfw.bin").write_bytes(as_pairs([jpeg((112, 112)) for _ in range(12)], [True, False, True] * 2))
    test = root / "megaface"
    known = [f"{person}/{person}_{k}.png" for person in ("Ann_Lee", "Bo_Li") for k in range(3)]
    others = [f"10{k}/7{k}@N00/{k}_0.jpg" for k in range(9)]
    for kind, paths in (("facescrub", known), ("megaface", others)):
        (test / f"{kind}_images").mkdir(parents=True)
        (test / f"{kind}_lst").write_text("".join(f"data/{kind}_images/{path}\n" for path in paths))
        for path in paths:
            file = test / f"{kind}_images" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg((112, 112)))
    (test / "facescrub_noises.txt").write_text("# wrong person\nBo_Li_2.png\n")
    (test / "megaface_noises.txt").write_text("#\n0\t101/71@N00/1_0.jpg\n102/72@N00/2_0.jpg\n")
    (test / "overlap.txt").write_text("104/74@N00/4_0.jpg\n")
