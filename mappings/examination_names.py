"""Names of imaging examinations read into their parts, so that ``CT胸部平扫`` and ``双肺CT平扫检查`` are the same examination."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from mappings.codes import clean_name
from mappings.traditional import simplified

# First that is found counts: CTA is not CT, colour Doppler of vessels is still ultrasound.
_MODALITIES = (
    ("PET", r"pet[-/]?ct|pet"),
    ("MRCP", r"mrcp|(?:磁共振|mri?)?(?:胰胆管|胆胰管)(?:水)?成像"),
    ("CTA", r"ctpa|cta|(?:血管|动脉)ct(?:造影|成像)|ct造影|ct血管成像|ct动脉成像|ct血管造影"),
    ("MRA", r"mra|磁共振血管成像|mr血管成像|磁共振血管造影"),
    ("CT", r"ct"),
    ("MR", r"核磁共振成像|磁共振成像|核磁共振|磁共振|核磁|mri|mr"),
    ("MG", r"钼靶|乳腺x线摄影|乳腺x线"),
    ("DXA", r"骨密度测定|骨密度|dxa|dexa"),
    ("US", r"彩色多普勒超声检查|彩色多普勒超声|彩色多普勒|彩色超声|彩色b超|彩超|b型超声|b超|超声|多普勒"),
    ("DX", r"数字化x线|x线摄影|x线片|x线|x光|x片|(?<![a-z])(?:dr|cr|dx)(?![a-z])|平片|摄片|胸片|片(?=正|侧|斜|$)"),
)
_DOPPLER = re.compile("彩色多普勒|彩超|彩色超声|多普勒")
_LOW_DOSE = re.compile("低剂量|ldct")
_DIFFUSION = re.compile("[弥彌扩]散(?:加权)?(?:成像)?")
_WITHOUT = re.compile("平扫")
_WITH = re.compile("(?:动态|延迟)?(?:增强|强化)")
_SIDES = (("both", r"双侧|两侧|双"), ("left", r"左侧|左"), ("right", r"右侧|右"))
_PROJECTIONS = (
    ("ap+lateral", r"正侧位|正、侧位|正位[+、及和]侧位|前后位及侧位|正位侧位|正侧"),
    ("ap+oblique", r"正斜位|正位[+、及和]斜位|正斜"),
    ("upright", r"立位正位|立位|站立位"),
    ("supine", r"卧位正位|卧位"),
    ("ap", r"正位|后前位|前后位|pa位"),
    ("lateral", r"侧位"),
    ("oblique", r"斜位"),
)
_FILM = re.compile("正侧位|正斜位|正位|侧位|斜位|轴位|[华瓦柯]氏位")
"""How only a film is taken, where no modality is named."""
_POSTURES = frozenset({"upright", "supine"})
_SITES = (
    ("coronary", "冠状动脉|冠脉"), ("pulmonary-artery", "肺动脉"), ("head-neck", "头颈部|头颈|颈部及颅脑"),
    ("carotid", "颈总动脉|颈动脉|颈部血管"), ("lower-veins", "下肢深静脉|下肢静脉"), ("lower-arteries", "下肢动脉"),
    ("upper-veins", "上肢静脉"), ("renal-vessels", "肾动脉|肾血管"), ("abdominal-aorta", "腹主动脉"),
    ("aorta", "胸腹主动脉|全主动脉|主动脉"), ("sinuses", "副鼻窦|鼻窦"), ("nasal-bones", "鼻骨"),
    ("temporal", "颞骨|中耳|内耳|乳突"), ("orbit", "眼眶"), ("pituitary", "垂体|鞍区"), ("sacroiliac", "骶髂关节"),
    ("sacrum", "骶尾椎|骶尾骨"), ("lumbosacral", "腰骶椎"), ("cervical", r"颈[\d~/-]*椎间盘|颈椎"),
    ("thoracic-spine", r"胸[\d~/-]*椎间盘|胸椎"),
    ("lumbar", r"腰[\d~/-]*椎间盘|腰椎"), ("spine", "全脊柱|脊柱全长"),
    ("chest-abdomen", "胸腹部|胸腹|(?:胸部?|肺部?|双肺)[+、及和与]上?腹部?"),
    ("abdomen-pelvis", "全腹部|全腹"),
    ("upper-abdomen", "上腹部|上腹"), ("pelvis", "盆腔|下腹部"), ("pelvic-bone", "骨盆"), ("lymph-neck", "颈部淋巴结"),
    ("thyroid", "甲状腺"), ("parathyroid", "甲状旁腺"), ("parotid", "腮腺"), ("breast", "乳腺|乳房|双乳(?![腺房])"),
    ("liver-gb-pancreas-spleen", "腹部肝胆胰脾|肝胆胰脾|肝胆脾胰|肝、胆、胰、脾|肝胆胰脾腹部"),
    ("urinary", "泌尿系统|泌尿系|肾输尿管膀胱|肾膀胱输尿管"), ("kidney-ureter", "双肾输尿管|肾输尿管"),
    ("uterus", "妇科(?:子宫附件)?|子宫[、,及和+]?(?:双侧?|两侧)?附件"), ("heart", "心脏"), ("prostate", "前列腺"),
    ("liver", "肝脏"), ("head", "头颅|颅脑|头部|脑部|颅骨|头|脑|颅"), ("neck", "颈部(?:软组织)?"),
    ("ribs", "肋骨"), ("clavicle", "锁骨"),
    ("calcaneus", "跟骨"), ("forearm", "尺桡骨|前臂"), ("humerus", "肱骨|上臂"), ("femur", "股骨|大腿"),
    ("tibia", "胫腓骨|小腿"), ("hip", "髋关节|髋部|髋"), ("knee", "膝关节|膝"), ("shoulder", "肩关节|肩"),
    ("elbow", "肘关节|肘"), ("wrist", "腕关节|腕"), ("ankle", "踝关节|踝"), ("hand", "手"), ("foot", "足|脚"),
    ("eye", "眼部|双眼|眼球|眼"), ("appendix", "阑尾"), ("scrotum", "阴囊睾丸|睾丸附睾|阴囊|睾丸"), ("gut", "胃肠道|胃肠"),
    ("pregnancy", "产科|胎儿|早孕|中晚孕|中孕|晚孕|孕期"), ("pleura", "胸腔积液|胸腔|胸水"),
    ("chest", "胸部|肺部|双肺|胸|肺"), ("abdomen", "腹部|腹"), ("vertebral-artery", "椎动脉"), ("gallbladder", "胆囊"),
    ("pancreas", "胰腺"), ("spleen", "脾脏|脾"), ("kidney", "肾脏|肾"), ("bladder", "膀胱"), ("ureter", "输尿管"),
    ("axilla", "腋窝(?:淋巴结)?|腋下(?:淋巴结)?"), ("groin", "腹股沟(?:区|淋巴结)?"), ("salivary", "颌下腺|舌下腺|涎腺"),
)  # fmt: skip
_ADDED = re.compile("左?心功能|残余尿|经阴道|经腹部?|腔内|体表")
"""What is measured on the same pictures, or how the probe is held."""
_ABBREVIATED = re.compile(r"\([a-z]{2,6}\)|ucg|tcd")
_FILLER = re.compile(
    r"(?:18f-?)?fdg|拼接|负重位?|侧轴位|轴位|华氏位|瓦氏位|柯氏位|spect|[骨肺软]组?织?窗|[冠矢]状[位面]|flair|检查|扫描|成像|摄影|造影|三维重建|三维|重建|[cltsCLTS]\d{1,2}(?:[-~/][cltsCLTS]?\d{1,2})*(?![a-z])|薄层|螺旋|断层|普通|常规|数字化|数字|直接|升级|不出片|出片|不含胶片|不含片|含片|含胶片|团检|团单"
    r"|单价|优惠|\d+[排层]|多排|加|普美显|造影剂|单胎|双胎|多胎|双源|高分辨率?|hr|\d(?:\.\d)?t|站立位?|立位|免费|送|部位|脏器|床旁|床边|急诊|测定|区域?|[+与及和、,，。:：;；*()（）\[\]【】\-_/\s]"
)


@dataclass(frozen=True, slots=True)
class Examination:
    """An imaging examination as its name says it. ``site`` is a known site, else the rest of the name; ``also`` are the other
    sites of a name that lists several; ``side``, ``contrast`` and ``projection`` are empty when the name does not say."""

    modality: str
    site: str
    side: str
    contrast: str
    projection: str
    low_dose: bool
    doppler: bool
    also: tuple[str, ...] = ()


@lru_cache(maxsize=4096)
def examination(text: str) -> Examination | None:
    """A name -> its parts; None when no imaging modality is named."""
    rest = simplified(unicodedata.normalize("NFKC", clean_name(text)[0])).casefold()
    doppler = bool(_DOPPLER.search(rest))
    chest_film = "胸片" in rest or "ctpa" in rest
    if "ctu" in rest:
        rest = rest.replace("ctu", "泌尿系ct") + ("" if _WITHOUT.search(rest) else "增强")
    modality = ""
    for word, pattern in _MODALITIES:
        if re.search(pattern, rest):
            modality = word
            if chest_film:
                rest = rest.replace("胸片", "胸部").replace("ctpa", "肺动脉cta")
            elif word == "MG":
                rest = "乳腺" + rest.replace("乳腺", "").replace("双乳", "双")
            rest = (
                re.sub(pattern, " ", rest)
                if word != "DX"
                else re.sub("|".join(p for _, p in _MODALITIES[9:]), " ", rest)
            )
            break
    if not modality and _FILM.search(rest):
        modality = "DX"
    if not modality:
        return None
    if modality == "US":
        rest = re.sub(_MODALITIES[8][1], " ", rest)
    low_dose = bool(_LOW_DOSE.search(rest))
    rest = _LOW_DOSE.sub(" ", rest)
    contrast = ("+" if _WITHOUT.search(rest) else "") + ("contrast" if _WITH.search(rest) else "")
    contrast = {"+": "without", "contrast": "with", "+contrast": "both"}.get(contrast, "")
    rest = _DIFFUSION.sub("dwi", rest)
    if "dwi" in rest:
        contrast += "+dwi"
    rest = _WITH.sub(" ", _WITHOUT.sub(" ", rest)).replace("dwi", " ")
    rest = _ABBREVIATED.sub(" ", rest)
    projection, rest = _first(_PROJECTIONS, rest)
    if projection in _POSTURES:
        rest = rest.replace("正位", " ")
    if "双肺" in rest:
        rest = rest.replace("双肺", "胸部")
    site, rest = _first(_SITES, _ADDED.sub(" ", rest))
    if "左" in rest and "右" in rest:
        rest = re.sub("[左右]侧?", " ", rest) + "双"
    if modality == "MRCP":
        site = "ducts"
    side, rest = _first(_SIDES, rest)
    also, left = _others(rest) if site else ((), rest)
    left = _FILLER.sub("", left)
    if left:
        # What is said beside a site may make it another examination: puncture, reconstruction of a joint.
        also, left = (), _FILLER.sub("", rest)
    return Examination(
        modality, f"{site}{':' if site and left else ''}{left}", side, contrast, projection, low_dose, doppler, also
    )


def _others(rest: str) -> tuple[tuple[str, ...], str]:
    found: list[str] = []
    for word, pattern in _SITES:
        if re.search(pattern, rest):
            found.append(word)
            rest = re.sub(rf"{pattern}|双|两侧", " ", rest)
    return tuple(found), rest


def _first(table: tuple[tuple[str, str], ...], text: str) -> tuple[str, str]:
    for word, pattern in table:
        if re.search(pattern, text):
            return word, re.sub(pattern, " ", text)
    return "", text


def likeness(local: Examination, known: Examination) -> float:
    """How far two names mean the same examination, 0 to 0.97; 0 when modality, site or dose differ. A name that lists several
    sites is a little like the examination of each."""
    if (local.modality, local.low_dose) != (known.modality, known.low_dose) or not local.site:
        return 0.0
    score = 0.97
    if (local.site, local.also) != (known.site, known.also):
        if known.also or known.site not in (local.site, *local.also):
            return 0.0
        score -= 0.2
    if local.side != known.side:
        score -= 0.04 if {local.side, known.side} == {"", "both"} else 0.4
    if local.contrast != known.contrast:
        plain = {local.contrast, known.contrast} == {"", "without"}
        more = local.contrast == f"{known.contrast}+dwi" and known.contrast == "both"
        # A scan with contrast is mostly made after a plain one; some lists only know the one, some only the other.
        more = more or {local.contrast, known.contrast} == {"with", "both"}
        score -= (0.15 if known.contrast else 0.1) if plain else 0.1 if more else 0.4
    if local.projection != known.projection:
        posture = local.projection in _POSTURES and known.projection == "ap"
        score -= (
            (0.14 if known.projection == "ap" else 0.15)
            if not local.projection
            else 0.1
            if not known.projection or posture
            else 0.4
        )
    if local.doppler != known.doppler:
        score -= 0.03
    return max(0.0, score)
