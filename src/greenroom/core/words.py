"""Reads text into stems, and knows which words mean the same job: *look up* meets *finds sources*.

Only `core.routing` reads it. The thesaurus names jobs that agents are commonly deployed for; the words of a
job are what people say who want it done, and what manifests say of an agent that does it. Agents with jobs
of their own declare skills and examples instead of entries here.
"""

import functools
import itertools
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

# Of a longer text these are read: people put what they want first or last, around what they paste.
HEAD_CHARS: Final = 1500
TAIL_CHARS: Final = 500
MAX_WORD_CHARS: Final = 32

WEAK: Final = 0.5  # of a job's word after the bar
SPELLABLE_CHARS: Final = 5  # shorter words have too many neighbours

_WORD = re.compile(r"[^\W_]+")
_ERROR_NAME = re.compile(r"(?<=[a-z])(?=(?:Error|Exception)\b)")  # TypeError: two words
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]{2,}")  # Chinese, Japanese: no spaces
_VOWELS = str.maketrans("", "", "aeiouy")

# *Analysis, analyse, analytics* get one stem, and so do *summarise, summary* and *translate, translator*.
_ENDINGS: Final = """
    isations izations isation ization isers izers ising izing iser izer ised ized ises izes ise ize
    ysing yzing ytics ytic yses yzes ysed yzed ysts yst ysis yse yze
    ations ation ating ators ator ated ates ate itions ition ions ion ments ment ings ing
    aries ary ers er ors or ies ied ed es s e y ness ly
"""
_LONGEST_FIRST: Final = tuple(sorted(_ENDINGS.split(), key=len, reverse=True))


class Word(msgspec.Struct, frozen=True):
    """A word or phrase as it was written, folded to lower case without accents, and its stem."""

    text: str
    stem: str


def read(text: str) -> list[Word]:
    """The words of *text* in order, without filler; a phrase of the thesaurus comes before its words."""
    found: list[Word] = []
    tokens = _tokens(text)
    stems = [stem(token) for token in tokens]
    for position, token in enumerate(tokens):
        found.extend(
            Word(" ".join(tokens[position : position + len(phrase)]), "_".join(phrase))
            for phrase in _phrases().get(stems[position], ())
            if tuple(stems[position : position + len(phrase)]) == phrase
        )
        if token not in FILLER and not token.isdigit() and (len(token) > 1 or not token.isascii()):
            found.append(Word(token, stems[position]))
    return found


def jobs(term: str) -> Mapping[str, float]:
    """The jobs that a stem or phrase speaks for, with strengths in (0, 1]; a word of many jobs says less."""
    return _jobs().get(term, {})


def known(term: str) -> bool:
    """Whether *term* is in the thesaurus."""
    return term in _jobs()


def everyday(term: str) -> bool:
    """Whether *term* is only a weak word, so that to find it in a description says little too."""
    return term in _everyday()


@functools.lru_cache(maxsize=8192)
def stem(token: str) -> str:
    """The token without its English ending; other languages mostly keep theirs, `Spellings` forgives them."""
    for suffix in _LONGEST_FIRST:
        if token.endswith(suffix) and len(token) - len(suffix) >= (2 if suffix == "s" else 3):
            token = token[: -len(suffix)]
            break
    if len(token) > 3 and token[-1] == token[-2] and token[-1] not in "sl":
        token = token[:-1]  # planning, plan
    return token


class Spellings(msgspec.Struct, frozen=True):
    """Finds the term that a misspelt or inflected one stands for.

    Terms are filed under themselves, under themselves without one letter (a slip of one letter or a swap of
    two meets there) and under their beginnings (unknown endings). Source: symmetric deletes, as in
    SymSpell. N-grams were the alternative: a swap in a word of six letters changes half of them.
    """

    filed: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, terms: Iterable[str]) -> "Spellings":
        """File *terms*; phrases and short words are left out."""
        filed: dict[str, list[str]] = {}
        for term in sorted(terms):
            if len(term) >= SPELLABLE_CHARS and "_" not in term:
                for key in _neighbours(term):
                    filed.setdefault(key, []).append(term)
        return cls({key: tuple(found) for key, found in filed.items()})

    def nearest(self, term: str) -> str | None:
        """The term that *term* most likely stands for, or none."""
        if len(term) < SPELLABLE_CHARS - 1:
            return None
        for key in _neighbours(term):
            for candidate in self.filed.get(key, ()):
                if _alike(term, candidate):
                    return candidate
        return None


@functools.cache
def thesaurus_spellings() -> Spellings:
    return Spellings.of(_jobs())


def _tokens(text: str) -> list[str]:
    if len(text) > HEAD_CHARS + TAIL_CHARS:
        text = f"{text[:HEAD_CHARS]} {text[-TAIL_CHARS:]}"
    text = _ERROR_NAME.sub(" ", text)
    if not text.isascii():
        decomposed = unicodedata.normalize("NFKD", text)
        text = "".join(char for char in decomposed if not unicodedata.combining(char))
    text = _UNSPACED.sub(_pairs, text)
    return [token[:MAX_WORD_CHARS] for token in _WORD.findall(text.lower())]


def _pairs(run: re.Match[str]) -> str:
    return f" {' '.join(a + b for a, b in itertools.pairwise(run.group()))} "


def _neighbours(term: str) -> Iterator[str]:
    yield term
    for position in range(len(term)):
        yield term[:position] + term[position + 1 :]
    if len(term) > SPELLABLE_CHARS:
        yield term[:-2]


def _alike(term: str, other: str) -> bool:
    """One letter too many or too few, two swapped, another vowel, or another ending."""
    if term[:1] != other[:1]:
        return False
    short, long = sorted((term, other), key=len)
    if len(short) < len(long):
        return long.startswith(short) or any(long[:at] + long[at + 1 :] == short for at in range(len(long)))
    return sorted(term) == sorted(other) or term.translate(_VOWELS) == other.translate(_VOWELS)


@functools.cache
def _jobs() -> Mapping[str, Mapping[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for job, listed in THESAURUS.items():
        strong, _, weak = listed.partition("|")
        for strength, entries in ((WEAK, weak), (1.0, strong)):
            for entry in entries.split():
                term = "_".join(stem(part) for part in entry.split("_"))
                found.setdefault(term, {})[job] = strength
    return {term: {job: strength / math.sqrt(len(of)) for job, strength in of.items()} for term, of in found.items()}


@functools.cache
def _everyday() -> frozenset[str]:
    strong = {stem(entry) for listed in THESAURUS.values() for entry in listed.partition("|")[0].split()}
    return frozenset(_jobs().keys() - strong)


@functools.cache
def _phrases() -> Mapping[str, tuple[tuple[str, ...], ...]]:
    phrases: dict[str, list[tuple[str, ...]]] = {}
    for term in _jobs():
        first, *others = term.split("_")
        if others:
            phrases.setdefault(first, []).append((first, *others))
    return {first: tuple(found) for first, found in phrases.items()}


# Words after the bar are weak, because people use them for much else. An underscore joins a phrase.
# Inflections need no entry of their own, irregular ones do.
THESAURUS: Final[dict[str, str]] = {
    "research": """
        research source reference literature paper study citation cite investigate look_up find_out
        background fact evidence scholar academic journal bibliography discover explore survey
        up_to_speed state_of_the_art latest_development tell_me_about learn_about what_is_known
        what_do_we_know press publication encyclopedia wikipedia web_search recherche recherchieren
        investigar rechercher market_research deep_dive dig_into read_up fact_check verify_claim
        source_of author scientist experiment theory history_of origin_of statistic_source report_on
        landscape what_happened library archive quote_source patent_search prior_art
        competitor_research
        | find found search link news article summary summarise overview latest recent who_is
        what_is suche finde cherche busca who when trend expert topic""",
    "summary": """
        summary summarise summarization digest tldr tl_dr key_points main_points gist condense
        shorten recap in_short in_a_nutshell takeaways abstract boil_down zusammenfassen resume_moi
        resumir synopsis outline bullet_point sum_up meeting_notes in_brief wrap_up cliff_notes
        headline_version highlight condensed distil compress transcript_summary shortened long_read
        skim
        | overview brief short bullet main notes page transcript""",
    "analysis": """
        analysis analyse analytics analyst data dataset statistics statistic trend correlation
        regression metric kpi chart graph plot visualise visualization csv spreadsheet excel
        dashboard average median percentile distribution outlier anomaly pattern forecast predict
        compare comparison breakdown cohort churn conversion evaluate quantify insight segment
        significance significant histogram pivot_table analysieren analyser analizar how_many
        how_much kpi_report per_month per_week per_day by_country by_region by_month year_over_year
        month_over_month top_ten aggregate ranking rank variance deviation sample hypothesis
        a_b_test benchmark model_fit time_series seasonality ratio proportion count_of active_user
        usage retention funnel query_data pie_chart bar_chart heat_map crosstab score root_cause
        estimate
        | number figure measure difference explain increase decrease drop dip rise growth grow
        region quarter report sales survey table performance user country rate total count
        average_of most least value share column row""",
    "writing": """
        write wrote written writer draft compose blog post article essay copy copywriting copywriter
        newsletter press_release slogan tagline headline caption speech letter story poem paragraph
        sentence wording rephrase reword rewrite proofread edit polish tone paraphrase prose
        announcement announce ghostwrite content_creation editor text schreiben schreibe ecris
        rediger escribe redactar reply_to respond_to cover_letter product_description biography
        script_for toast invitation_text memo brochure flyer chapter novel lyrics verse rhyme
        limerick grammar spelling typo phrasing readable tone_of_voice outline_for thank_you_note
        obituary ghostwriter manuscript storytelling narrative white_paper case_study landing_page
        | email report describe description note message friendly formal content publish style
        letter_to title intro sound paragraph_about line""",
    "translation": """
        translate translation translator language bilingual multilingual localise localization
        interpreter how_do_you_say in_english into_english mother_tongue foreign ubersetze
        ubersetzen ubersetzung traduire traduis traduction traducir traduce traduccion traduzir
        tradurre vertaal english french german spanish italian portuguese dutch polish russian
        ukrainian chinese mandarin japanese korean arabic hebrew hindi turkish greek swedish
        norwegian danish finnish czech hungarian romanian vietnamese thai indonesian englisch
        englische deutsch franzosisch anglais francais allemand ingles espanol translated version_in
        in_german in_french in_spanish in_italian in_japanese in_chinese in_portuguese into_german
        into_french into_spanish what_does_this_mean_in native_speaker transliterate
        subtitle_language dialect
        | word phrase""",
    "code": """
        code coding coder program programmer programming software developer bug debug debugger
        function method class module library package api endpoint python javascript typescript java
        rust golang sql query regex script algorithm compile compiler exception error_message
        stack_trace traceback null_pointer syntax refactor unit_test test_suite lint pull_request
        merge_request pr diff commit branch merge git github repository repo codebase variable
        parser loop html css react implement type_error value_error key_error backend frontend
        framework bugfix segfault crash_dump array string_parse boolean integer null undefined
        exception_handling memory_leak race_condition deadlock concurrency async recursion interface
        inheritance dependency npm pip cargo maven gradle dockerfile makefile ide vscode json xml
        yaml regular_expression rest_api graphql sdk cli c_sharp php ruby swift kotlin webhook
        build_failure failing_test type_hint docstring migration orm legacy_code technical_debt
        code_smell
        | test error fix implementation object type slow faster optimise feature review index crash
        build version line run""",
    "operations": """
        deploy deployment server cluster kubernetes docker container cloud aws azure infrastructure
        devops pipeline ci_cd rollout uptime downtime outage incident latency monitoring log
        terraform scaling autoscale database backup restore provision certificate dns load_balancer
        on_call staging service_down is_down site_down went_down roll_back rollback rolled_out pod
        node_pool restarting crashloop 500_error 502 503 504 timeout time_out health_check replica
        queue_length throughput load_test capacity cpu_usage memory_usage disk_full out_of_memory
        oom failover recover post_mortem sla slo error_rate traffic_spike nginx kafka redis postgres
        degraded unavailable unreachable paging pager cron hotfix feature_flag grafana prometheus
        root_cause runbook throttle
        | production release monitor alert cpu memory disk down slow service api restart queue spike
        recovery""",
    "billing": """
        bill billed billing invoice payment pay paid charge charged overcharge refund money_back
        reimburse receipt subscription unsubscribe credit_card debit card price plan_upgrade fee due
        declined bank_transfer paypal double_charge overdue rechnung facture factura zahlung
        remboursement reembolso billed_twice charged_twice duplicate_charge direct_debit
        standing_order iban pricing discount coupon voucher promo_code free_trial trial renewal
        auto_renew statement_of_account payment_method chargeback payable unpaid past_due prorate
        credit_note cheque transaction
        | money amount cost cancel account order upgrade renew back""",
    "finance": """
        finance financial accounting accountant bookkeeping budget expense revenue profit loss
        cash_flow tax vat balance_sheet ledger audit payroll investment portfolio stock share
        dividend interest loan mortgage valuation fund bookkeeper book_keeping accounts_payable
        accounts_receivable deduct deduction deductible tax_return write_off depreciation asset
        liability_account equity income turnover fiscal quarter_close year_end salary_cost
        expense_report reconcile reconciliation cost_centre cash exchange_rate currency savings
        pension inflation interest_rate credit_score roi irr npv forecast_cash
        | cost money quarter price margin bank account receipt owe owed deposit credit return""",
    "support": """
        support complaint complain customer_service ticket helpdesk unhappy dissatisfied escalate
        faq client troubleshoot not_working does_not_work doesn_t_work stopped_working
        angry_customer respond_to_customer feedback dispute how_do_i_use user_guide knowledge_base
        satisfaction apology sorry_for case_number
        | customer help question answer issue problem user product broken problem_with""",
    "orders": """
        parcel package_delivery delivery deliver shipment shipping ship courier tracking warehouse
        inventory supplier supply procurement purchase return_item exchange damaged arrived warranty
        logistics checkout where_is_my_order my_order my_package where_is_my order_status
        order_number send_back send_it_back bring_back never_arrived not_arrived has_not_arrived
        tracking_number lost_in_transit wrong_size wrong_item broken_on_arrival unpack unboxing
        postage postal dispatch dispatched parcel_shop pick_up out_of_stock in_stock restock
        backorder sku fulfilment fulfillment refund_item freight customs pallet vendor basket
        shopping_cart courier_service
        | order stock buy item product return missing late package broken arrive wait color size""",
    "sales": """
        sales lead prospect crm outreach pitch deal quote proposal upsell negotiation marketing
        campaign advertisement ad seo brand audience social_media instagram linkedin facebook
        twitter tiktok hashtag influencer promotion launch engagement cold_email cold_call follow_up
        quota revenue_target sales_pipeline customer_acquisition newsletter_campaign growth_hack
        go_to_market value_proposition positioning press_kit giveaway contest follower reel tweet
        thread_post subreddit seo_keyword click_through impression cta call_to_action
        content_calendar demo_call close_the_deal discount_offer account_executive
        | customer market competitor post product sale channel like""",
    "calendar": """
        calendar meeting meet schedule reschedule appointment agenda invite invitation slot
        availability time_zone stand_up remind reminder set_up_a_call postpone o_clock free_time
        double_booked meeting_room termin rendez_vous reunion cita diary book_a_meeting
        cancel_the_meeting invitees attendee participant get_together catch_up one_on_one sync_with
        weekly_sync next_week block_time time_slot am_i_free when_am_i_free out_of_office
        conflict_in lunch_with at_noon date_for birthday_reminder deadline_reminder recurring
        everyone_available
        | call week tomorrow morning afternoon today monday tuesday wednesday thursday friday
        saturday sunday move arrange free busy hour book plan noon evening minute date weekend later
        earlier""",
    "travel": """
        travel trip journey flight fly airline airport airplane train bus ferry hotel hostel
        accommodation airbnb itinerary vacation holiday tourist tourism sightseeing destination
        passport visa luggage car_rental rental_car transport station layover round_trip book_a_room
        get_to sleep city_break reise flug voyage viaje vuelo tour guided_tour backpacking road_trip
        cruise beach_holiday weekend_in weekend_trip travel_insurance jet_lag connecting_flight
        departure boarding_pass check_in luggage_allowance suitcase bed_and_breakfast motel camping
        guesthouse museum landmark route map_of direction taxi subway metro tram drive_from car_hire
        rail train_ticket flight_ticket honeymoon getaway tourist_visa business_trip things_to_do
        where_to_stay what_to_see
        | book booking reserve reservation room stay visit see ticket day night cheapest cheap city
        beach trip_plan tickets way leave arrive kid south north guide""",
    "planning": """
        plan planning roadmap milestone project task todo to_do prioritise backlog sprint timeline
        checklist organise coordinate gantt deadline workflow kanban action_plan action_item
        to_do_list work_breakdown estimate_effort scope stakeholder kickoff kick_off retrospective
        okr objective resource_planning dependency_chart critical_path jira trello next_steps
        break_down_task
        | schedule step goal assign team priority event order_of""",
    "legal": """
        legal law lawyer attorney contract clause agreement nda lease liability compliance gdpr
        privacy regulation regulatory terms_of_service terms_and_conditions intellectual_property
        patent trademark copyright litigation lawsuit sue court license licence landlord tenant
        notice_period data_protection allowed_to jurisdiction indemnity confidentiality statute
        breach vertrag contrat contrato legally illegal lawful unlawful contractual tenancy eviction
        deposit_back warranty_claim data_subject dpa cookie_banner consent_form disclaimer
        paragraph_of_law section_of plaintiff defendant judge inheritance_law will_and_testament
        power_of_attorney divorce employment_law labour_law non_compete arbitration settlement
        damages ip_rights due_diligence governing_law force_majeure sla_contract addendum annex
        notarise notary bylaws shareholder antitrust sanction right_to entitled
        | policy party rent rule risk terminate permission sign legal_risk raise notice deposit
        claim right""",
    "computers": """
        laptop computer password login log_in log_on sign_in locked_out vpn wifi wi_fi printer
        monitor_screen keyboard mouse install reinstall uninstall antivirus reboot outlook browser
        windows macos shared_drive hardware mfa two_factor authenticator headset docking
        network_drive internet bluetooth freeze frozen blue_screen pc mac ipad iphone android
        smartphone tablet webcam microphone usb hard_disk ssd email_account mailbox inbox
        spam_folder cannot_open can_t_open won_t_start won_t_turn_on won_t_open not_responding
        slow_computer virus_scan single_sign_on sso verification_code otp account_locked
        access_denied permission_denied remote_desktop screen_share zoom teams sharepoint onedrive
        google_drive toner scanner cable charger battery ethernet router hotspot
        | access system update crash connect connection screen device account drive software network
        reset error phone print file folder app black mouse_pointer open turn_on email""",
    "people": """
        hr human_resources recruit recruiter recruitment hiring hire candidate resume cv interview
        onboarding onboard offboarding salary payslip sick_leave annual_leave parental_leave
        vacation_days time_off job_description job_posting vacancy performance_review benefits
        human_capital applicant_tracking headhunter talent talent_pool shortlist cover_letter_screen
        phone_screen first_interview interview_question job_offer offer_letter probation
        promotion_review pay_rise raise_salary holiday_request maternity paternity sick_day absence
        working_hours overtime contract_of_employment dismissal resignation resign
        notice_of_termination diversity appraisal performance_goal headcount hiring_manager
        recruiting cvs job_opening open_position who_to_hire
        | employee staff applicant colleague intern team job leave role opening position senior
        junior manager experience skill""",
    "security": """
        security vulnerability exploit malware phishing ransomware breach hacked hacker attack
        threat penetration firewall intrusion cve encryption leak leaked suspicious credential
        pentest security_hole sql_injection xss csrf cross_site backdoor trojan keylogger botnet
        ddos brute_force zero_day patch_level threat_model hardening siem soc access_log
        privilege_escalation data_leak stolen fraud scam spoof pentester security_review secrets
        api_key_leak forensic
        | risk scan alert secure incident password weird_login unknown_login""",
    "design": """
        design designer logo image picture illustration photo draw drawing sketch poster banner icon
        mockup wireframe figma layout colour color palette typography font graphic graphic_design
        brand_identity branding visual_identity infographic poster_design icon_set app_icon ui ux
        user_interface user_experience render rendering 3d photoshop sketch_app illustrator vector
        thumbnail cover_art album_cover business_card packaging colour_scheme photograph portrait
        image_of picture_of generate_image
        | page visual interface prototype style look cover card""",
    "health": """
        health medical doctor patient symptom diagnosis treatment medication medicine drug dose
        clinic hospital nurse pain fever allergy therapy blood headache stomach cough flu
        cold_symptom virus_infection vaccine vaccination blood_pressure heart cholesterol diabetes
        cancer pregnant pregnancy rash injury physiotherapy prescription pharmacy pill side_effect
        calorie nutrition nutritionist workout fitness_plan lose_weight mental_health anxiety
        depression insomnia dentist surgery health_insurance well_being wellbeing
        | diet sleep exercise weight tired hurt ache doctor_visit effect""",
    "education": """
        teach teacher tutor tutoring lesson course homework exam quiz student curriculum learn
        explain_to_me school university training_course exercise_sheet flashcard school_subject
        maths_homework pupil grade_school high_school college class_test study_for revise revision
        lecture lecturer syllabus lesson_plan worksheet multiple_choice essay_grading grading
        understand don_t_understand don_t_get step_by_step explanation physics chemistry biology
        geography history_lesson vocabulary_list teach_me learning pedagogy textbook simple_terms
        in_simple_words explain_it_simply
        | explain study practice question grade test fraction subject solution century history
        concept right""",
    "mathematics": """
        mathematics math maths calculate calculation compute arithmetic equation solve algebra
        integral derivative multiply divide sum percentage probability geometry theorem proof times
        number_theory linear_equation quadratic polynomial matrix vector_space logarithm exponent
        fraction decimal trigonometry square_root factorial prime_number times_table plus minus
        | number formula square solution x""",
    "cooking": """
        recipe cook cooking bake meal dinner lunch breakfast ingredient kitchen restaurant dish
        vegetarian menu_plan chef baking bread cake pasta soup salad sauce vegan oven leftover
        meal_plan meal_prep groceries grocery_list cuisine
        | food eat menu cheese chicken""",
    "home": """
        thermostat heating light lamp smart_home curtain vacuum_cleaner alarm_clock garden heater
        air_conditioning dishwasher washing_machine plumber plumbing electrician renovation
        furniture doorbell light_bulb turn_off_the_lights living_room bedroom
        | degrees warm door turn_on turn_off kitchen room""",
    "media": """
        music song playlist album podcast video film movie audio subtitle transcribe transcript
        recording youtube streaming singer band concert melody tune soundtrack radio audiobook
        episode series tv television netflix spotify cinema actor director video_edit clip_cut
        voice_over
        | play watch listen clip track season show""",
    "weather": """
        weather forecast_for_today temperature rain snow sunny storm umbrella wind forecast_weather
        sunshine raining snowing humid humidity degrees_outside hail fog heat_wave cloudy""",
}

# Words that say nothing of what is wanted.
_FILLER: Final = """
    a about above after again all also am an and any anybody anyone anything are as at be been before being
    below bitte but by can could d das de dem den der des di did die do does doing don done down du ein eine
    el en et for from further get gets getting give given go goes got had has have he hello help helps her
    here hey hi him his how i ich if il in into is it its je just keep keeps la las le les let lets like ll
    lo los m make makes many may me might mine mir moi more most much must my need needs no nor not now of
    off on once one only or other our ours out over own para please por re s same shall she should so some
    something such t take takes tell than thank thanks that the their theirs them then there these they
    thing things this those through to too un und under une until up us use used using ve very want wants
    was we well were what when where which while who whom whose why will with without won would y yes you
    your yours
"""
FILLER: Final = frozenset(_FILLER.split())
