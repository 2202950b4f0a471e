"""English names of imaging examinations in the Chinese words that ``examination_names`` reads: ``L-spine MRI`` -> ``腰椎mr``."""

from __future__ import annotations

import re
import unicodedata

from mappings.codes import clean_name

_MODALITY = re.compile(
    r"\b(?:x-?rays?|xr|dr|cr|radiographs?|ct|hrct|cta|ldct|mri?|mra|us|usg|ultrasound|ultrasonography|sonography|doppler|mammogra(?:m|phy)|dxa|dexa)\b"
)
_WORDS = (
    (r"with(?:out)? and with(?:out)?(?: iv)?(?: contrast)?|plain (?:and|\+) (?:contrast|enhanced)|pre and post contrast", "平扫+增强"),
    (r"without(?: iv)?(?: contrast)?|non-? ?contrast(?: enhanced)?|non-?enhanced|unenhanced|\bplain\b|\bw/o(?: contrast)?", "平扫"),
    (r"with(?: iv)? contrast|contrast-? ?enhanced|post-? ?contrast|enhanced|\bw/(?: contrast)?|\bcontrast\b", "增强"),
    (r"low-? ?dose|\bldct\b", "低剂量"), (r"diffusion(?: weighted)?", "弥散"),
    (r"c-?spine|cervical (?:spine|vertebrae)", "颈椎"), (r"lumbosacral spine|l-?s spine", "腰骶椎"),
    (r"t-?spine|thoracic (?:spine|vertebrae)", "胸椎"), (r"l-?spine|lumbar (?:spine|vertebrae)", "腰椎"),
    (r"sacrum (?:and|&) coccyx|sacrum|coccyx|sacrococcyx", "骶尾椎"), (r"sacroiliac joints?|si joints?", "骶髂关节"),
    (r"whole spine|full spine|thoracic and lumbar spine", "全脊柱"),
    (r"upper abdom(?:en|inal)", "上腹部"), (r"abdomen (?:and|&|/|\+) ?pelvis|whole abdomen|full abdomen|entire abdomen", "全腹部"),
    (r"chest (?:and|&|/|\+) ?abdomen", "胸腹部"), (r"temporal bones?", "颞骨"), (r"nasal bones?", "鼻骨"),
    (r"(?:para)?nasal sinus(?:es)?|sinus(?:es)?|pns\b", "鼻窦"), (r"orbits?", "眼眶"), (r"pituitary|sella", "垂体"),
    (r"head (?:and|&) neck", "头颈部"), (r"neck lymph nodes?|cervical lymph nodes?", "颈部淋巴结"),
    (r"coronary arter(?:y|ies)|coronary", "冠状动脉"), (r"pulmonary arter(?:y|ies)", "肺动脉"), (r"abdominal aorta", "腹主动脉"),
    (r"aorta", "主动脉"), (r"carotid(?: arter(?:y|ies))?|carotids", "颈动脉"), (r"renal (?:arter(?:y|ies)|vessels?)", "肾动脉"),
    (r"lower (?:extremity|limbs?|extremities) (?:deep )?(?:veins?|venous)", "下肢静脉"),
    (r"lower (?:extremity|limbs?|extremities) arter(?:y|ies|ial)", "下肢动脉"),
    (r"upper (?:extremity|limbs?|extremities) veins?", "上肢静脉"),
    (r"liver,? gall ?bladder,? pancreas,?(?: and)? spleen|hepatobiliary", "肝胆胰脾"),
    (r"kidneys?,? ureters?,?(?: and)? bladder|urinary (?:tract|system)", "泌尿系"),
    (r"urinary bladder|(?<!gall)(?<!gall )bladder", "膀胱"),
    (r"gall ?bladder", "胆囊"), (r"kidneys?|renal", "双肾"), (r"uterus|gyn(?:a?ecolog(?:y|ical))?|adnexa|uterus and adnexa", "妇科"),
    (r"obstetric(?:s|al)?|pregnancy|fetal|fetus", "产科"), (r"scrotum|testicles?|testes|testis", "阴囊"),
    (r"lymph nodes?", "淋巴结"), (r"parathyroid(?: glands?)?", "甲状旁腺"), (r"thyroid(?: glands?)?", "甲状腺"),
    (r"parotid(?: glands?)?", "腮腺"), (r"breasts?", "乳腺"), (r"appendix", "阑尾"), (r"prostate", "前列腺"),
    (r"tibia (?:and|&|/) ?fibula|tib-?fib|lower leg", "胫腓骨"), (r"radius and ulna|ulna and radius|forearm", "尺桡骨"),
    (r"knees?(?: joints?)?", "膝关节"), (r"hips?(?: joints?)?", "髋关节"), (r"shoulders?(?: joints?)?", "肩关节"),
    (r"elbows?(?: joints?)?", "肘关节"), (r"wrists?(?: joints?)?", "腕关节"), (r"ankles?(?: joints?)?", "踝关节"),
    (r"humerus", "肱骨"),
    (r"femur", "股骨"),
    (r"clavicle", "锁骨"),
    (r"calcaneus|heel", "跟骨"),
    (r"hands?", "手"),
    (r"foot|feet", "足"),
    (r"ribs?", "肋骨"), (r"pelvis|pelvic", "盆腔"), (r"chest|thorax|lungs?", "胸部"), (r"brain|head|skull|cranial", "头颅"),
    (r"neck", "颈部"),
    (r"abdom(?:en|inal)", "腹部"),
    (r"liver", "肝脏"),
    (r"pancreas", "胰腺"),
    (r"spleen", "脾脏"),
    (r"heart|cardiac", "心脏"),
    (r"eyes?", "眼"), (r"\b(?:left|lt)\b", "左"), (r"\b(?:right|rt)\b", "右"), (r"bilateral|both", "双"),
    (r"(?:ap|pa) ?(?:and|&|/|\+) ?lat(?:eral)?|two views|2 views", "正侧位"), (r"(?:ap|pa) ?(?:and|&|/|\+) ?oblique", "正斜位"),
    (r"upright|erect|standing", "立位"), (r"supine", "卧位"), (r"\b(?:pa|ap)\b(?: view)?", "正位"), (r"\blat(?:eral)?\b", "侧位"),
    (r"oblique", "斜位"), (r"bone (?:mineral )?density|\bbmd\b", "骨密度"),
    (r"x-?rays?|\bxr\b|radiographs?", "x线"),
    (r"\bhrct\b", "ct"),
    (r"\bct angiography\b|\bct angiogram\b", "cta"),
    (r"\bmr angiography\b", "mra"),
    (r"ultrasound|ultrasonography|sonography|\busg?\b", "超声"),
    (r"colou?r doppler|doppler", "彩色多普勒"),
    (r"mammogra(?:m|phy)", "乳腺钼靶"),
    (r"\b(?:scan|of|the|for|screening|and|views?|exam(?:ination)?|routine|plain|film|joint|glands?|imaging|protocol|iv)\b", ""),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), word) for pattern, word in _WORDS)


def in_chinese(text: str) -> str:
    """A Latin name that holds an imaging modality -> the words for it, the pelvis of a film as the bone; else the text as it is."""
    lowered = unicodedata.normalize("NFKC", clean_name(text)[0]).casefold()
    if not lowered.isascii() or not _MODALITY.search(lowered):
        return text
    for pattern, word in _COMPILED:
        lowered = pattern.sub(f" {word} " if word else " ", lowered)
    out = re.sub(r"\s+", "", lowered)
    if "x线" in out or re.search(r"(?<![a-z])(?:dr|cr)(?![a-z])", out):
        out = out.replace("盆腔", "骨盆")
    return out
